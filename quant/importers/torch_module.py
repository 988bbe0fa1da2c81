"""Reads a ``torch.nn.Module`` into a float graph, through ``torch.export``.

``torch.export`` is taken rather than symbolic tracing because it sees every spelling of an operator
(module, function, method, in-place) as one ATen call with known shapes, and follows control flow
that depends on shapes or on the training flag.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from hwgen.errors import BadInput, BadNetwork, UnsupportedLayer
from quant.graph import FloatGraph, Shape
from quant.importers.aten import HANDLERS, PASS_THROUGH, Call
from quant.importers.build import Constant, GraphBuilder, Hidden, Ref, RefusalError, Value
from quant.importers.hints import change_for

__all__ = ["import_torch"]

BATCH = 2
"""Images in the traced batch: not 1, so that no operator can take the batch for an axis to drop."""


def import_torch(module: nn.Module, input_shape: Shape) -> FloatGraph:
    """Read a module, as it computes in evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
        Takes one tensor ``(N, *input_shape)`` and returns one. It is left as it was.
    input_shape : tuple of int
        ``(channels, height, width)`` or ``(features,)``.

    Returns
    -------
    FloatGraph
        Not folded; nodes have the names of the modules (``features.0``) or of the functions.

    Raises
    ------
    BadInput
        If an argument has the wrong type.
    BadNetwork
        If the module does not run on that shape, holds weights that are not finite, or has no layer
        that multiplies.
    UnsupportedLayer
        If operations cannot be converted; the message names all of them.
    """
    if not isinstance(module, nn.Module):
        raise BadInput(
            f"the network must be a torch.nn.Module, not {type(module).__name__}; create the module"
            " and load its state_dict into it"
        )
    size = tuple(input_shape)
    if len(size) not in (1, 3) or not all(isinstance(n, int) and n > 0 for n in size):
        raise BadInput(
            f"the input shape must be (channels, height, width) or (features,), not {input_shape}"
        )
    with _evaluation_mode(module):
        program = _export(module, size)
    return _Reader(program, GraphBuilder(size)).read()


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and every submodule back to its own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _export(module: nn.Module, size: Shape) -> ExportedProgram:
    state = [*module.parameters(), *module.buffers()]
    floating = next((t for t in state if t.is_floating_point()), torch.zeros(()))
    example = torch.zeros((BATCH, *size), dtype=floating.dtype, device=floating.device)
    # Warnings here are about torch's own internals and about speed, which matter to no graph.
    with torch.no_grad(), warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        try:
            module(example)
        except Exception as error:  # a module may raise anything
            raise BadNetwork(
                f"the module does not run on a tensor {tuple(example.shape)}: {_first_line(error)};"
                " check its layers and the input shape"
            ) from error
        try:
            return torch.export.export(module, (example,))
        except Exception as error:  # torch.export raises many types, some private
            raise UnsupportedLayer(
                f"the module runs but cannot be traced: {_first_line(error)}; its forward() must"
                " not take decisions on the values of tensors"
            ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


@dataclass(slots=True)
class _Reader:
    """Walks an exported program; ``values`` holds what each of its tensors became."""

    program: ExportedProgram
    builder: GraphBuilder
    values: dict[fx.Node, Value] = field(default_factory=dict)
    storages: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def read(self) -> FloatGraph:
        order = {node: place for place, node in enumerate(self.program.graph.nodes)}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.values[node] = self._call(node, order)
        return self.builder.finish(self.values[self._output()])

    def _placeholder(self, node: fx.Node) -> Value:
        signature, program = self.program.graph_signature, self.program
        name = str(node.name)
        for table, store in (
            (signature.inputs_to_parameters, program.state_dict),
            (signature.inputs_to_buffers, {**program.constants, **program.state_dict}),
            (signature.inputs_to_lifted_tensor_constants, program.constants),
        ):
            if name in table:
                return _constant(table[name], store[table[name]])
        return Ref("input")

    def _output(self) -> fx.Node:
        results = self.program.graph.output_node().args[0]
        user = [
            node
            for node, spec in zip(results, self.program.graph_signature.output_specs, strict=True)
            if spec.kind.name == "USER_OUTPUT"
        ]
        if len(user) != 1 or not isinstance(user[0], fx.Node):
            raise BadNetwork(
                f"a module must return one tensor, not {len(user)} results; return the logits alone"
            )
        return user[0]

    def _call(self, node: fx.Node, order: dict[fx.Node, int]) -> Value:
        name, operator = _describe(node)
        if getattr(node.target, "__name__", "") == "getitem":
            return self._getitem(node)
        try:
            call = self._bind(node, name)
            if call.operator.startswith("_assert"):
                return Hidden()  # a check that the traced shapes and types passed; has no result
            if any(isinstance(v, Hidden) for v in call.operands):
                if call.operator not in HANDLERS and call.operator not in PASS_THROUGH:
                    raise RefusalError(
                        "this operation has no counterpart", change_for(call.operator)
                    )
                return self.builder.opaque(name, _shape(node))
            value = self._convert(node, call)
            self._follow_storage(node, value, order)
            return value
        except RefusalError as refusal:
            self.builder.refuse(name, operator, refusal.reason, refusal.change)
        except BadNetwork as error:
            self.builder.blame(name, operator, str(error))
        return self.builder.opaque(name, _shape(node))

    def _getitem(self, node: fx.Node) -> Value:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if node.args[1] == 0 or not node.users:
            return self.values[source]
        if not isinstance(self.values[source], Hidden):
            name, operator = _describe(source)
            self.builder.refuse(
                name, operator, "its second result is used", "use its first result only"
            )
        return Hidden()

    def _bind(self, node: fx.Node, name: str) -> Call:
        """The call's arguments by name, with defaults, tensors replaced by their values."""
        if not isinstance(node.target, torch._ops.OpOverload):
            raise RefusalError(
                f"{node.target} is no tensor operation", change_for(str(node.target))
            )
        arguments: dict[str, Any] = {}
        schema = node.target._schema
        for place, argument in enumerate(schema.arguments):
            given = node.args[place] if place < len(node.args) else None
            if place >= len(node.args):
                given = node.kwargs.get(argument.name, argument.default_value)
            arguments[argument.name] = _substitute(given, self.values)
        operands = tuple(self.values[n] for n in node.all_input_nodes)
        operator = schema.name.split("::")[-1].removesuffix("_")
        return Call(
            operator=operator, name=name, arguments=arguments, operands=operands, shape=_full(node)
        )

    def _convert(self, node: fx.Node, call: Call) -> Value:
        seeded = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
        if all(isinstance(v, Constant) for v in call.operands) and not seeded:
            return self._evaluate_constant(node)
        if call.operator in PASS_THROUGH:
            return call.operands[0]
        if call.operator not in HANDLERS:
            raise RefusalError("this operation has no counterpart", change_for(call.operator))
        return HANDLERS[call.operator](self.builder, call)

    def _evaluate_constant(self, node: fx.Node) -> Value:
        """Compute what depends on constants alone, such as a masked or reparametrised weight."""

        def tensor(n: fx.Node) -> torch.Tensor:
            value = self.values[n]
            assert isinstance(value, Constant)
            return torch.tensor(value.array)

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), tensor)
        try:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, ValueError) as error:
            raise RefusalError(
                f"computing its constant failed: {_first_line(error)}", "store the result instead"
            ) from error
        if not isinstance(result, torch.Tensor):
            raise RefusalError("it makes several constants", "store the results instead")
        return _constant(str(node.name), result)

    def _follow_storage(self, node: fx.Node, value: Value, order: dict[fx.Node, int]) -> None:
        """Give in-place operations their effect on the other names of the same tensor."""
        schema = node.target._schema  # type: ignore[union-attr]
        inputs = node.all_input_nodes
        # Dropout in evaluation mode returns its input itself, which its schema does not say.
        aliases = any(r.alias_info is not None for r in schema.returns) or "dropout" in schema.name
        if not aliases or not inputs:
            return
        source = inputs[0]
        root = self.storages.get(source, source)
        self.storages[node] = root
        if not schema.is_mutable:
            return
        before = self.values[source]
        for other in [n for n in self.values if self.storages.get(n, n) is root]:
            if self.values[other] == before:
                self.values[other] = value
            elif any(order[user] > order[node] for user in other.users):
                raise RefusalError(
                    f"it changes a tensor in place that is read as '{other.name}' afterwards",
                    "use the operation that is not in place (inplace=False)",
                )


def _constant(name: str, tensor: torch.Tensor) -> Constant:
    data = tensor.detach().cpu()
    if data.dtype == torch.bfloat16:  # numpy has no such type; float32 holds it exactly
        data = data.float()
    return Constant(name, data.numpy())


def _substitute(argument: Any, values: dict[fx.Node, Value]) -> Any:
    """An argument of a call with its nodes, also in a list, replaced by their values."""
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, (list, tuple)):
        return [_substitute(item, values) for item in argument]
    return argument


def _full(node: fx.Node) -> tuple[int, ...]:
    """Shape of a call's (first) result, batch included."""
    result = node.meta.get("val")
    if isinstance(result, (tuple, list)):
        result = result[0]
    return tuple(int(n) for n in result.shape) if isinstance(result, torch.Tensor) else ()


def _shape(node: fx.Node) -> Shape | None:
    """Shape of a call's result without the batch, where it has one."""
    full = _full(node)
    return full[1:] if full[:1] == (BATCH,) else None


def _describe(node: fx.Node) -> tuple[str, str]:
    """The name and operator under which the user knows a call."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    operator = str(getattr(node.target, "_schema", node.target)).split("(")[0].replace("::", ".")
    if stack:
        path, kind = stack[-1]
        kind_name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if path and kind_name.startswith("torch.nn.modules."):
            return str(path), f"nn.{kind_name.rsplit('.', 1)[-1]}"
    return str(node.name), operator
