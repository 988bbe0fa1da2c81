"""Structural checks: every bit driven once, no latches, connections of equal width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hwgen.cost.reading import ModuleText, children, constant, kind_of
from hwgen.errors import Mismatch

__all__ = ["Bits", "assigned", "check_structure", "width_of_expression"]

Bits = dict[str, int]
"""Bits of nets, as masks by name."""


def _all(module: ModuleText, name: str, line: int) -> int:
    return (1 << module.net(name, line).width) - 1


def _select(module: ModuleText, node: Any) -> tuple[str, int]:
    """Net and bits a name, a bit or a part of it, or a memory word stands for."""
    kind = kind_of(node)
    if kind == "Identifier":
        return node.name, _all(module, node.name, node.lineno)
    name, whole = _select(module, node.var)
    if kind == "Partselect":
        msb, lsb = constant(node.msb), constant(node.lsb)
        if msb is None or lsb is None or msb < lsb:
            return name, whole
        mask = ((1 << (msb - lsb + 1)) - 1) << lsb
    else:
        index = constant(node.ptr)
        if index is None or module.net(name, node.lineno).depth is not None:
            return name, whole
        mask = 1 << index
    if mask & ~whole:
        raise Mismatch(
            f"module {module.name}, line {node.lineno}: a bit of {name} beyond its"
            f" {whole.bit_length()} is used"
        )
    return name, mask


def _targets(module: ModuleText, left: Any) -> Iterator[tuple[str, int]]:
    kind = kind_of(left)
    if kind == "Lvalue":
        yield from _targets(module, left.var)
    elif kind in ("LConcat", "Concat"):
        for part in left.list:
            yield from _targets(module, part)
    else:
        yield _select(module, left)


def _merge(into: Bits, more: Mapping[str, int]) -> None:
    for name, mask in more.items():
        into[name] = into.get(name, 0) | mask


def assigned(module: ModuleText, statement: Any) -> tuple[Bits, Bits]:
    """Bits a statement assigns on every way through it, and on some way."""
    kind = kind_of(statement)
    always: Bits = {}
    some: Bits = {}
    if statement is None:
        return always, some
    if kind == "Block":
        for inner in statement.statements:
            inner_always, inner_some = assigned(module, inner)
            _merge(always, inner_always)
            _merge(some, inner_some)
        return always, some
    if kind == "IfStatement":
        ways = [statement.true_statement, statement.false_statement]
    elif kind == "CaseStatement":
        ways = [case.statement for case in statement.caselist]
        if all(case.cond is not None for case in statement.caselist):
            ways.append(None)  # no default: maybe none of them
    else:
        for name, mask in _targets(module, statement.left):
            _merge(always, {name: mask})
        return always, dict(always)
    results = [assigned(module, way) for way in ways]
    for _, way_some in results:
        _merge(some, way_some)
    for name in some:
        mask = -1
        for way_always, _ in results:
            mask &= way_always.get(name, 0)
        always[name] = mask
    return always, some


def _reads(module: ModuleText, node: Any, found: Bits) -> None:
    """Add the bits an expression or statement reads to ``found``."""
    kind = kind_of(node)
    if node is None or kind == "IntConst":
        return
    if kind in ("Identifier", "Partselect", "Pointer"):
        name, mask = _select(module, node)
        _merge(found, {name: mask})
        if kind == "Pointer":
            _reads(module, node.ptr, found)
        if kind != "Identifier" and kind_of(node.var) != "Identifier":
            _reads(module, node.var, found)
        return
    if kind == "Lvalue":
        _read_indices(module, node.var, found)
        return
    for child in children(node):
        _reads(module, child, found)


def _read_indices(module: ModuleText, node: Any, found: Bits) -> None:
    """What the left side of an assignment reads: addresses."""
    kind = kind_of(node)
    if kind == "Pointer":
        _reads(module, node.ptr, found)
    if kind in ("LConcat", "Concat"):
        for part in node.list:
            _read_indices(module, part, found)
    elif kind in ("Pointer", "Partselect"):
        _read_indices(module, node.var, found)


def width_of_expression(module: ModuleText, node: Any) -> int | None:
    """Bits of a name, a part, a sized constant or a concatenation of them; None for others."""
    kind = kind_of(node)
    if kind == "Identifier":
        return module.net(node.name, node.lineno).width
    if kind in ("Partselect", "Pointer"):
        name, mask = _select(module, node)
        if kind == "Pointer" and module.net(name, node.lineno).depth is None:
            return 1
        return mask.bit_count()
    if kind == "IntConst":
        size = node.value.partition("'")[0]
        return int(size) if "'" in node.value and size.isdigit() else None
    if kind == "Concat":
        widths = [width_of_expression(module, part) for part in node.list]
        return None if None in widths else sum(width for width in widths if width is not None)
    if kind == "Repeat":
        times, width = constant(node.times), width_of_expression(module, node.value)
        return None if times is None or width is None else times * width
    if kind == "SystemCall":
        return width_of_expression(module, node.args[0])
    return None


class _Drivers:
    """Who drives which bits of a module."""

    def __init__(self, module: ModuleText) -> None:
        self.module = module
        self.bits: Bits = {}

    def add(self, name: str, mask: int, line: int) -> None:
        net = self.module.net(name, line)
        if net.depth is not None:
            # Two write ports would be two blocks; the memories of this project have one.
            mask = -1
        if self.bits.get(name, 0) & mask:
            raise Mismatch(
                f"module {self.module.name}, line {line}: {name} has more than one driver"
            )
        if net.direction == "input":
            raise Mismatch(f"module {self.module.name}, line {line}: the input {name} is driven")
        self.bits[name] = self.bits.get(name, 0) | mask


def _check_instance(
    module: ModuleText, index: int, modules: Mapping[str, ModuleText], drivers: _Drivers, read: Bits
) -> None:
    instance = module.instances[index]
    place = f"module {module.name}, instance {instance.name}"
    if instance.module not in modules:
        raise Mismatch(f"{place}: there is no module {instance.module}")
    inner = modules[instance.module]
    ports = {net.name: net for net in inner.nets.values() if net.direction}
    for name in instance.ports:
        if name not in ports:
            raise Mismatch(f"{place}: module {instance.module} has no port {name}")
    for name, net in ports.items():
        expression = instance.ports.get(name)
        if expression is None:
            if net.direction == "input":
                raise Mismatch(f"{place}: the input {name} is not connected")
            continue
        width = width_of_expression(module, expression)
        if width is not None and width != net.width:
            raise Mismatch(f"{place}: {name} has {net.width} bits, {width} are connected")
        if net.direction == "input":
            _reads(module, expression, read)
        else:
            for target, mask in _targets(module, expression):
                drivers.add(target, mask, instance.line)


def _check_module(module: ModuleText, modules: Mapping[str, ModuleText]) -> None:
    drivers, read = _Drivers(module), Bits()
    for left, right in module.assigns:
        for name, mask in _targets(module, left):
            if module.net(name, left.lineno).variable:
                raise Mismatch(
                    f"module {module.name}, line {left.lineno}: the register {name} has a"
                    " continuous assignment"
                )
            drivers.add(name, mask, left.lineno)
        _reads(module, right, read)
        _read_indices(module, left, read)
    for clock, statement in module.clocked:
        for name, mask in assigned(module, statement)[1].items():
            drivers.add(name, mask, statement.lineno)
        _reads(module, statement, read)
        _merge(read, {clock: _all(module, clock, statement.lineno)})
    for statement in module.combinational:
        always, some = assigned(module, statement)
        for name, mask in some.items():
            if mask & ~always.get(name, 0):
                raise Mismatch(
                    f"module {module.name}, line {statement.lineno}: {name} is a latch: its"
                    " combinational block does not assign it on every way"
                )
            drivers.add(name, mask, statement.lineno)
        _reads(module, statement, read)
    for index in range(len(module.instances)):
        _check_instance(module, index, modules, drivers, read)
    for net in module.nets.values():
        if net.direction == "output":
            _merge(read, {net.name: _all(module, net.name, net.line)})
    for name, mask in read.items():
        net = module.net(name, 0)
        held = net.direction == "input" or net.initial or name in module.contents
        if not held and mask & ~drivers.bits.get(name, 0):
            raise Mismatch(
                f"module {module.name}, line {net.line}: {name} is read but nothing drives"
                f" {'it' if not drivers.bits.get(name) else 'all of its bits'}"
            )


def check_structure(modules: Mapping[str, ModuleText]) -> None:
    """Check every module.

    Raises
    ------
    Mismatch
        At the first latch, net without a driver, bit with two drivers, or connection of unequal
        width, naming module, line and signal.
    """
    for module in modules.values():
        _check_module(module, modules)
