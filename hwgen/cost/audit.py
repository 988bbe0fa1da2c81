"""Reads emitted Verilog back and checks it against what the dataflow says must be in it.

The text is parsed by pyverilog, which shares nothing with what emitted it. Checked are the widths of
registers, the operand widths of multipliers, the shapes and contents of memories, and the structure:
no latches, every bit driven exactly once, connections of equal width, plain Verilog-2001 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwgen.cost.reading import ModuleText, Net, children, constant, kind_of, read_verilog
from hwgen.cost.structure import check_structure, width_of_expression
from hwgen.errors import Mismatch

__all__ = ["AuditFacts", "AuditReport", "MemoryFact", "ModuleFacts", "MultiplierFact", "audit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplierFact:
    """A multiplier.

    Parameters
    ----------
    product : str
        The register its product enters.
    operands : tuple of (int, int)
        Bits of its operands, in any order, without the zero that extends an unsigned one.
    """

    product: str
    operands: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFact:
    """A memory.

    Parameters
    ----------
    name : str
    width, depth : int
        Bits of a word, words.
    words : tuple of int or None
        Contents of a read-only memory, each in ``0 .. 2 ** width - 1``; None for one that is
        written.
    """

    name: str
    width: int
    depth: int
    words: tuple[int, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """What a module must hold.

    Parameters
    ----------
    module : str
        Name of the Verilog module.
    registers : tuple of (str, int)
        Names and widths of registers that must be there.
    multipliers : tuple of MultiplierFact
        All multipliers of two variable operands.
    memories : tuple of MemoryFact
        All memories.
    """

    module: str
    registers: tuple[tuple[str, int], ...] = ()
    multipliers: tuple[MultiplierFact, ...] = ()
    memories: tuple[MemoryFact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """What a design must hold.

    Parameters
    ----------
    modules : tuple of ModuleFacts
    every_memory : bool
        Whether these are all memories of the design: another one is then an error.
    """

    modules: tuple[ModuleFacts, ...]
    every_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was read back and found equal.

    Parameters
    ----------
    modules : int
        Modules of the design, all checked for structure.
    registers, multipliers, memories : int
        Of those, what was compared with facts.
    memory_bits : int
        Bits of read-only memory compared.
    """

    modules: int
    registers: int
    multipliers: int
    memories: int
    memory_bits: int

    @property
    def summary(self) -> str:
        """One sentence."""
        return (
            f"read back with pyverilog: {self.modules} modules, {self.registers} register widths,"
            f" {self.multipliers} multipliers, {self.memories} memories,"
            f" {self.memory_bits:,} bits of contents; no latch, no undriven or doubly driven bit"
        )


class _Definitions:
    """Where each net of a module gets its value."""

    def __init__(self, module: ModuleText) -> None:
        self.module = module
        self.wires: dict[str, list[Any]] = {}
        self.registers: dict[str, list[Any]] = {}
        for left, right in module.assigns:
            for name in _names(left):
                self.wires.setdefault(name, []).append(right)
        for statement in module.combinational:
            self._collect(statement, self.wires)
        for _, statement in module.clocked:
            self._collect(statement, self.registers)

    def _collect(self, statement: Any, into: dict[str, list[Any]]) -> None:
        if kind_of(statement) in ("NonblockingSubstitution", "BlockingSubstitution"):
            for name in _names(statement.left.var):
                into.setdefault(name, []).append(statement.right.var)
        else:
            for child in children(statement):
                self._collect(child, into)

    def products(self, register: str) -> list[Any]:
        """The multiplications whose values reach ``register`` within a cycle."""
        found: dict[int, Any] = {}
        seen: set[str] = set()

        def walk(node: Any) -> None:
            if kind_of(node) == "Times":
                found[id(node)] = node
            if kind_of(node) == "Identifier" and node.name not in seen:
                seen.add(node.name)
                for source in self.wires.get(node.name, ()):
                    walk(source)
            for child in children(node):
                walk(child)

        for source in self.registers.get(register, ()):
            walk(source)
        return list(found.values())

    def operand_width(self, node: Any) -> int | None:
        """Bits of a multiplier's operand, before a zero extends it."""
        kind = kind_of(node)
        if kind == "SystemCall":
            return self.operand_width(node.args[0])
        if kind == "Concat" and len(node.list) == 2 and constant(node.list[0]) == 0:
            return self.operand_width(node.list[1])
        if kind == "Identifier" and node.name not in self.registers:
            sources = self.wires.get(node.name, [])
            if len(sources) == 1 and kind_of(sources[0]) in ("Identifier", "Concat", "SystemCall"):
                return self.operand_width(sources[0])
        return width_of_expression(self.module, node)


def _names(left: Any) -> list[str]:
    kind = kind_of(left)
    if kind in ("LConcat", "Concat"):
        return [name for part in left.list for name in _names(part)]
    return [left.name] if kind == "Identifier" else _names(left.var)


def _is_constant(node: Any) -> bool:
    if kind_of(node) == "IntConst":
        return True
    below = list(children(node))
    return kind_of(node) in ("SystemCall", "Concat") and all(map(_is_constant, below))


def _all_products(module: ModuleText) -> int:
    """Multiplications of two variable operands in a module."""
    count = 0

    def walk(node: Any) -> None:
        nonlocal count
        if kind_of(node) == "Times" and not any(map(_is_constant, children(node))):
            count += 1
        for child in children(node):
            walk(child)

    for _, right in module.assigns:
        walk(right)
    for statement in [*module.combinational, *(s for _, s in module.clocked)]:
        walk(statement)
    return count


def _net(module: ModuleText, name: str, what: str) -> Net:
    net = module.nets.get(name)
    if net is None:
        raise Mismatch(f"module {module.name}: there is no {what} {name}")
    return net


def _check_registers(module: ModuleText, facts: ModuleFacts, definitions: _Definitions) -> None:
    for name, width in facts.registers:
        net = _net(module, name, "register")
        if name not in definitions.registers:
            raise Mismatch(f"module {module.name}: {name} must be a register, no clock drives it")
        if net.depth is not None or net.width != width:
            raise Mismatch(
                f"module {module.name}: register {name} must have {width} bits, it has {net.width}"
            )


def _check_multipliers(module: ModuleText, facts: ModuleFacts, definitions: _Definitions) -> None:
    for fact in facts.multipliers:
        _net(module, fact.product, "register")
        products = definitions.products(fact.product)
        place = f"module {module.name}: register {fact.product}"
        if len(products) != 1:
            raise Mismatch(f"{place} must come from one multiplier, it comes from {len(products)}")
        (product,) = products
        found = [definitions.operand_width(node) for node in (product.left, product.right)]
        if None in found or sorted(filter(None, found)) != sorted(fact.operands):
            raise Mismatch(
                f"{place} must be a product of {fact.operands[0]} and {fact.operands[1]} bits,"
                f" line {product.lineno} multiplies {found[0]} and {found[1]}"
            )
    count = _all_products(module)
    if count != len(facts.multipliers):
        raise Mismatch(
            f"module {module.name} must have {len(facts.multipliers)} multipliers, it has {count}"
        )


def _check_memory(module: ModuleText, fact: MemoryFact, definitions: _Definitions) -> None:
    net = _net(module, fact.name, "memory")
    place = f"module {module.name}: memory {fact.name}"
    if (net.width, net.depth) != (fact.width, fact.depth):
        found = "no memory" if net.depth is None else f"{net.depth} words of {net.width}"
        raise Mismatch(f"{place} must have {fact.depth} words of {fact.width} bits, it has {found}")
    written = fact.name in definitions.registers
    if fact.words is None:
        if not written:
            raise Mismatch(f"{place} must be written, no clock does")
        return
    if written:
        raise Mismatch(f"{place} must be read-only, it is written")
    words = module.contents.get(fact.name, {})
    for address, expected in enumerate(fact.words):
        word = words.get(address)
        if word != expected:
            given = "is not given" if word is None else f"is {word:#x}"
            different = "" if word is None else f" (bits {word ^ expected:#x} differ)"
            raise Mismatch(f"{place}: word {address} must be {expected:#x}, it {given}{different}")
    if len(words) != fact.depth:
        raise Mismatch(f"{place} must be given {fact.depth} words, it is given {len(words)}")


def _check_contents(module: ModuleText) -> None:
    """Words that no memory has: they would be lost without a word from any tool."""
    for name, words in module.contents.items():
        net = _net(module, name, "memory")
        if net.depth is None or max(words) >= net.depth:
            raise Mismatch(
                f"module {module.name}: memory {name} is given word {max(words)}, it has"
                f" {net.depth or 0} words"
            )
        for address, word in words.items():
            if word >> net.width:
                raise Mismatch(
                    f"module {module.name}: word {address} of memory {name} is {word:#x}, more than"
                    f" its {net.width} bits"
                )


def _check_every_memory(modules: Mapping[str, ModuleText], facts: AuditFacts) -> None:
    known = {(m.module, memory.name) for m in facts.modules for memory in m.memories}
    for module in modules.values():
        for net in module.nets.values():
            if net.depth is not None and (module.name, net.name) not in known:
                raise Mismatch(f"module {module.name}: memory {net.name} is not of the dataflow")


def audit(verilog: str, facts: AuditFacts) -> AuditReport:
    """Read a design's text back and compare it with ``facts``.

    Parameters
    ----------
    verilog : str
        The emitted text.
    facts : AuditFacts

    Raises
    ------
    MissingTool
        If pyverilog is not installed.
    Mismatch
        At the first difference: module, signal, what must be there and what is.
    """
    modules = read_verilog(verilog)
    check_structure(modules)
    for module in modules.values():
        _check_contents(module)
    for expected in facts.modules:
        if expected.module not in modules:
            raise Mismatch(f"there is no module {expected.module}")
        found = modules[expected.module]
        definitions = _Definitions(found)
        _check_registers(found, expected, definitions)
        _check_multipliers(found, expected, definitions)
        for memory in expected.memories:
            _check_memory(found, memory, definitions)
        extra = {net.name for net in found.nets.values() if net.depth is not None}
        extra -= {memory.name for memory in expected.memories}
        if extra:
            raise Mismatch(f"module {found.name}: memory {min(extra)} is not of the dataflow")
    if facts.every_memory:
        _check_every_memory(modules, facts)
    memories = [memory for module in facts.modules for memory in module.memories]
    return AuditReport(
        modules=len(modules),
        registers=sum(len(module.registers) for module in facts.modules),
        multipliers=sum(len(module.multipliers) for module in facts.modules),
        memories=len(memories),
        memory_bits=sum(m.width * m.depth for m in memories if m.words is not None),
    )
