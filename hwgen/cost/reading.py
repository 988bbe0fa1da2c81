"""Verilog text back to nets, assignments, registers and memories, through pyverilog's parser."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

from hwgen.errors import Mismatch, MissingTool

__all__ = ["Instance", "ModuleText", "Net", "children", "constant", "kind_of", "read_verilog"]

_OPERATORS = frozenset(
    (
        *("Uplus", "Uminus", "Ulnot", "Unot", "Uand", "Unand", "Uor", "Unor", "Uxor", "Uxnor"),
        *("Times", "Plus", "Minus", "Sll", "Srl", "Sra", "LessThan", "GreaterThan", "LessEq"),
        *("GreaterEq", "Eq", "NotEq", "And", "Xor", "Xnor", "Or", "Land", "Lor", "Cond"),
    )
)
_EXPRESSIONS = _OPERATORS | {
    *("Identifier", "IntConst", "Partselect", "Pointer", "Concat", "LConcat", "Repeat"),
    *("SystemCall", "Lvalue", "Rvalue"),
}
_STATEMENTS = frozenset(
    (
        *("Block", "IfStatement", "CaseStatement", "Case"),
        *("NonblockingSubstitution", "BlockingSubstitution"),
    )
)
_CONSTANT = re.compile(r"(?:(\d+)?'[sS]?([hHdDbBoO]))?([0-9a-fA-F_]+)")
_BASES = {"h": 16, "d": 10, "b": 2, "o": 8}


@dataclass(slots=True, kw_only=True)
class Net:
    """A declared name.

    Parameters
    ----------
    name : str
    width : int
        Bits.
    depth : int or None
        Words of a memory; None for a plain net.
    line : int
    direction : str
        ``input``, ``output`` or empty.
    variable : bool
        Whether it is declared ``reg``.
    signed : bool
    initial : bool
        Whether its declaration gives it a power-up value.
    """

    name: str
    width: int
    depth: int | None = None
    line: int
    direction: str = ""
    variable: bool = False
    signed: bool = False
    initial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An instance: its module, its name and the expression at each port."""

    module: str
    name: str
    ports: dict[str, Any]
    line: int


@dataclass(slots=True, kw_only=True)
class ModuleText:
    """What a module says.

    Parameters
    ----------
    name : str
    nets : dict of str to Net
    assigns : list of (left, right)
        Continuous assignments, as pyverilog's nodes.
    clocked : list of (clock, statement)
        ``always @(posedge clock)`` blocks.
    combinational : list of statement
        ``always @*`` blocks.
    instances : list of Instance
    contents : dict of str to dict of int to int
        Words that initial blocks give to memories, by address.
    """

    name: str
    nets: dict[str, Net] = field(default_factory=dict)
    assigns: list[tuple[Any, Any]] = field(default_factory=list)
    clocked: list[tuple[str, Any]] = field(default_factory=list)
    combinational: list[Any] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    contents: dict[str, dict[int, int]] = field(default_factory=dict)

    def net(self, name: str, line: int) -> Net:
        """The net called ``name``.

        Raises
        ------
        Mismatch
            If it is not declared.
        """
        if name not in self.nets:
            raise Mismatch(f"module {self.name}, line {line}: {name} is not declared")
        return self.nets[name]


def kind_of(node: Any) -> str:
    """Name of a node's class."""
    return type(node).__name__


def children(node: Any) -> Iterator[Any]:
    """Nodes below a node."""
    return iter(node.children())


@lru_cache(maxsize=1)
def _parser() -> Any:
    """pyverilog's parser; its tables stay in memory, where its own constructor writes a file."""
    try:
        # Importing pyverilog leaves its VERSION file open, which Python may report much later, and
        # compiling it warns of its escape sequences.
        with warnings.catch_warnings():
            for category in (ResourceWarning, DeprecationWarning, SyntaxWarning):
                warnings.simplefilter("ignore", category)
            from ply import yacc
            from pyverilog.vparser.lexer import VerilogLexer
            from pyverilog.vparser.parser import VerilogParser
    except ImportError as error:
        raise MissingTool(
            "reading Verilog back needs the package pyverilog; install it: pip install pyverilog"
        ) from error

    class Parser(VerilogParser):  # type: ignore[misc]
        def __init__(self) -> None:
            self.lexer = VerilogLexer(error_func=self._lexer_error_func)
            self.lexer.build()
            self.tokens = self.lexer.tokens
            self.parser = yacc.yacc(
                module=self,
                method="LALR",
                debug=False,
                write_tables=False,
                errorlog=yacc.NullLogger(),
            )

    return Parser()


def constant(node: Any) -> int | None:
    """Value of a constant; None if it is none, or has unknown bits."""
    if kind_of(node) in ("Rvalue", "Lvalue"):
        node = node.var
    if kind_of(node) != "IntConst":
        return None
    match = _CONSTANT.fullmatch(node.value)
    if match is None:
        return None
    digits = match[3].replace("_", "")
    try:
        return int(digits, _BASES[(match[2] or "d").lower()])
    except ValueError:
        return None


class _Reader:
    """Fills one :class:`ModuleText`."""

    def __init__(self, definition: Any) -> None:
        self.text = ModuleText(name=definition.name)
        if definition.paramlist is not None and definition.paramlist.params:
            self.refuse(definition, "parameters")
        for item in definition.items or ():
            handler = getattr(self, f"on_{kind_of(item).lower()}", None)
            if handler is None:
                self.refuse(item, kind_of(item))
            else:
                handler(item)

    def refuse(self, node: Any, what: str) -> NoReturn:
        raise Mismatch(
            f"module {self.text.name}, line {node.lineno}: {what} is not of the plain Verilog-2001"
            " this project emits"
        )

    def on_decl(self, declaration: Any) -> None:
        for item in declaration.list:
            kind = kind_of(item)
            if kind in ("Input", "Output", "Wire", "Reg"):
                self.declare(item, kind)
            elif kind == "Assign":
                # The power-up value in the declaration of a register.
                if constant(item.right) is None:
                    self.refuse(item, "an initial value that is no constant")
                self.text.net(item.left.var.name, item.lineno).initial = True
            else:
                self.refuse(item, kind)

    def declare(self, item: Any, kind: str) -> None:
        width, depth = self.size(item.width, item), None
        if item.dimensions is not None:
            if len(item.dimensions.lengths) != 1:
                self.refuse(item, "an array of more than one dimension")
            depth = self.size(item.dimensions.lengths[0], item)
        net = self.text.nets.setdefault(
            item.name, Net(name=item.name, width=width, depth=depth, line=item.lineno)
        )
        if (net.width, net.depth) != (width, depth):
            raise Mismatch(
                f"module {self.text.name}, line {item.lineno}: {item.name} is declared with"
                f" {net.width} bits and with {width}"
            )
        net.signed |= bool(item.signed)
        if kind in ("Input", "Output"):
            net.direction = kind.lower()
        else:
            net.variable |= kind == "Reg"

    def size(self, span: Any, item: Any) -> int:
        if span is None:
            return 1
        msb, lsb = constant(span.msb), constant(span.lsb)
        if msb is None or lsb is None:
            self.refuse(item, "a range that is not constant")
        return abs(msb - lsb) + 1  # memories may count either way

    def on_assign(self, item: Any) -> None:
        self.check(item)
        self.text.assigns.append((item.left.var, item.right.var))

    def on_always(self, item: Any) -> None:
        self.check(item.statement)
        senses = item.sens_list.list
        if all(sense.type == "all" for sense in senses):
            self.text.combinational.append(item.statement)
        elif len(senses) == 1 and senses[0].type == "posedge":
            self.text.clocked.append((senses[0].sig.name, item.statement))
        else:
            self.refuse(item, "an always block with another event than one clock's rising edge")

    def on_initial(self, item: Any) -> None:
        for statement in item.statement.statements:
            left: Any = getattr(getattr(statement, "left", None), "var", None)
            if kind_of(statement) != "BlockingSubstitution" or kind_of(left) != "Pointer":
                self.refuse(statement, "an initial block that does more than fill a memory")
            address, word = constant(left.ptr), constant(statement.right)
            if address is None or word is None:
                self.refuse(statement, "a memory word that is not constant")
            words = self.text.contents.setdefault(left.var.name, {})
            if address in words:
                raise Mismatch(
                    f"module {self.text.name}, line {statement.lineno}: word {address} of"
                    f" {left.var.name} is given twice"
                )
            words[address] = word

    def on_instancelist(self, item: Any) -> None:
        if item.parameterlist:
            self.refuse(item, "an instance with parameters")
        for instance in item.instances:
            ports = {}
            for port in instance.portlist:
                if port.argname is not None:
                    self.check(port.argname)
                ports[port.portname] = port.argname
            self.text.instances.append(
                Instance(
                    module=instance.module, name=instance.name, ports=ports, line=instance.lineno
                )
            )

    def check(self, node: Any) -> None:
        """Refuse what is not in the tables above."""
        kind = kind_of(node)
        if kind not in _EXPRESSIONS and kind not in _STATEMENTS and kind != "Assign":
            self.refuse(node, kind)
        if kind == "SystemCall" and node.syscall not in ("signed", "unsigned"):
            self.refuse(node, f"${node.syscall}")
        for child in children(node):
            self.check(child)


def read_verilog(text: str) -> dict[str, ModuleText]:
    """Modules of a Verilog text by name.

    Raises
    ------
    MissingTool
        If pyverilog is not installed.
    Mismatch
        If the text is no plain Verilog-2001: what, in which module and line.
    """
    parser = _parser()
    from pyverilog.vparser.parser import ParseError  # imported with its warnings silenced above

    parser.lexer.reset_lineno()
    try:
        source = parser.parse(text)
    except ParseError as error:
        raise Mismatch(f"the text is no Verilog-2001, {error}") from error
    modules: dict[str, ModuleText] = {}
    for definition in source.description.definitions:
        if kind_of(definition) != "ModuleDef":
            raise Mismatch(f"line {definition.lineno}: only modules may stand at the top level")
        if definition.name in modules:
            raise Mismatch(f"line {definition.lineno}: module {definition.name} is defined twice")
        modules[definition.name] = _Reader(definition).text
    return modules
