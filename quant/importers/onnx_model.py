"""Reads a float ONNX file into a float graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference

from hwgen.errors import BadNetwork
from quant.graph import FloatGraph, Linear, Shape
from quant.importers.build import Constant, GraphBuilder, Hidden, Ref, RefusalError, Value
from quant.importers.hints import change_for
from quant.importers.onnx_constants import FOLDABLE, evaluate
from quant.importers.onnx_file import check_model, constant_of, input_of, load_model, opset_of
from quant.importers.onnx_ops import HANDLERS, Call

__all__ = ["import_onnx"]

FREE_BATCH = 1_000_003
"""What a free batch reads as in shapes: a prime that no layer's size is a multiple of."""

OTHERS = frozenset({"Constant", "Shape"})
"""Operators read here, beside those of HANDLERS and FOLDABLE."""


def import_onnx(path: str | PathLike[str], *, input_shape: Shape | None = None) -> FloatGraph:
    """Read a float ONNX file.

    Parameters
    ----------
    path : path
        The file; external data must lie in its folder.
    input_shape : tuple of int, optional
        ``(channels, height, width)`` or ``(features,)``, for files that leave a size free.

    Returns
    -------
    FloatGraph
        Not folded.

    Raises
    ------
    BadInput
        If the file cannot be read.
    BadNetwork
        If it is corrupt or inconsistent, or holds weights that are not finite, several inputs or
        outputs, or no layer that multiplies.
    UnsupportedLayer
        If nodes cannot be converted; the message names all of them.
    """
    file = Path(path)
    model = load_model(file)
    opset = opset_of(model, file)
    name, shape, batch = input_of(model, file, input_shape)
    if all(_known(node) for node in model.graph.node):
        check_model(model, file)
    reader = _Reader(
        model=model, builder=GraphBuilder(shape), opset=opset, batch=batch or FREE_BATCH
    )
    reader.values[name] = Ref("input")
    return reader.read()


def _known(node: onnx.NodeProto) -> bool:
    standard = node.domain in ("", "ai.onnx")
    return standard and any(node.op_type in table for table in (HANDLERS, FOLDABLE, OTHERS))


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Walks an ONNX graph; ``values`` holds what each of its tensors became."""

    model: onnx.ModelProto
    builder: GraphBuilder
    opset: int
    batch: int
    values: dict[str, Value] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    inferred: dict[str, Shape] | None = None

    def read(self) -> FloatGraph:
        graph = self.model.graph
        for tensor in graph.initializer:
            self.values[tensor.name] = constant_of(tensor, tensor.name)
        self.uses.update(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        names = _wished_names(list(graph.node))
        for node, name in zip(graph.node, names, strict=True):
            self._read_node(node, name)
        output = graph.output[0].name
        if output not in self.values:
            raise BadNetwork(f"no node makes the output '{output}'; export the model again")
        return self.builder.finish(self.values[output])

    def _read_node(self, node: onnx.NodeProto, name: str) -> None:
        source = node.name or (node.output[0] if node.output else name)
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        value: Value | None = None
        try:
            value = self._convert(node, name)
            for extra in node.output[1:]:
                if extra and self.uses[extra]:
                    raise RefusalError(
                        f"its second result '{extra}' is used", "use its first result only"
                    )
        except RefusalError as refusal:
            self.builder.refuse(source, operator, refusal.reason, refusal.change)
        except BadNetwork as error:
            self.builder.blame(source, operator, str(error))
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            # The specification's checker cannot run on files with unknown operators, so an
            # attribute of the wrong type or length shows only here.
            self.builder.blame(source, operator, f"it is malformed: {error}; export it again")
        given = [self.values.get(i) for i in node.input if i]
        if value is None and given and all(isinstance(v, Constant) for v in given):
            value = Hidden()  # a constant: no shape of an activation could stand for it
        if value is None:
            value = self.builder.opaque(name, self._shape(node.output[0] if node.output else ""))
        for place, result in enumerate(node.output):
            self.values[result] = value if place == 0 else Hidden()

    def _convert(self, node: onnx.NodeProto, name: str) -> Value | None:
        """What the node makes; None where an earlier problem hides it."""
        if not _known(node):
            raise RefusalError("this operation has no counterpart", change_for(node.op_type))
        missing = [i for i in node.input if i and i not in self.values]
        if missing:
            raise BadNetwork(f"it takes '{missing[0]}', which no earlier node makes")
        call = Call(
            operator=node.op_type,
            name=name,
            inputs=tuple(self.values[i] if i else None for i in node.input),
            attributes={a.name: _attribute(a) for a in node.attribute},
            opset=self.opset,
            batch=self.batch,
        )
        given = [v for v in call.inputs if v is not None]
        if any(isinstance(v, Hidden) for v in given):
            return None
        if node.op_type == "Constant":
            return _constant(call, node.output[0])
        if node.op_type == "Shape":
            return self._shape_constant(call, node.output[0])
        arrays = [v.array for v in given if isinstance(v, Constant)]
        if node.op_type in FOLDABLE and len(arrays) == len(call.inputs):
            return Constant(node.output[0], evaluate(call, arrays))
        if node.op_type not in HANDLERS:
            raise RefusalError("this operation has no counterpart", change_for(node.op_type))
        return self._bias_of_matmul(node, call) or HANDLERS[node.op_type](self.builder, call)

    def _shape_constant(self, call: Call, name: str) -> Constant:
        value = call.value(0)
        if isinstance(value, Constant):
            full: Shape = value.array.shape
        else:
            full = (self.batch, *self.builder.shape_of(value))
        cut = full[call.get("start", 0) : call.get("end", None)]
        return Constant(name, np.array(cut, dtype="int64"))

    def _bias_of_matmul(self, node: onnx.NodeProto, call: Call) -> Value | None:
        """``MatMul`` then ``Add`` of a constant is one linear layer, as in other exports."""
        if node.op_type != "Add" or len(node.input) != 2:
            return None
        for place in (0, 1):
            value, constant = call.value(place), call.value(1 - place)
            if not isinstance(value, Ref) or not isinstance(constant, Constant):
                continue
            layer = self.builder.nodes[value.name]
            if (
                isinstance(layer, Linear)
                and not layer.bias.any()
                and self.uses[node.input[place]] == 1
                and constant.array.shape in (layer.bias.shape, (1, *layer.bias.shape))
            ):
                bias = self.builder.weights(constant).reshape(-1)
                self.builder.nodes[value.name] = replace(layer, bias=bias)
                return value
        return None

    def _shape(self, tensor: str) -> Shape | None:
        """Shape of a tensor behind a problem, by ONNX's shape inference, without the batch."""
        if self.inferred is None:
            self.inferred = {}
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            known = {opset.domain for opset in model.opset_import}
            for domain in {node.domain for node in model.graph.node} - known:
                model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
            try:
                model = onnx.shape_inference.infer_shapes(model)
            except Exception:  # the model is refused anyway; shapes only help to find more problems
                return None
            for value in (*model.graph.value_info, *model.graph.output):
                dims = value.type.tensor_type.shape.dim
                self.inferred[value.name] = tuple(int(d.dim_value) for d in dims[1:])
        return self.inferred.get(tensor)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _constant(call: Call, name: str) -> Constant:
    for key, value in call.attributes.items():
        if key == "value":
            return constant_of(value, name)
        if key in ("value_float", "value_floats"):
            return Constant(name, np.array(value, dtype="float32"))
        if key in ("value_int", "value_ints"):
            return Constant(name, np.array(value, dtype="int64"))
    raise RefusalError("it is a sparse or text constant", "store it as a dense tensor")


def _wished_names(nodes: list[onnx.NodeProto]) -> list[str]:
    """Names without what the exporter added: ``/block1/conv1/Conv`` is ``block1.conv1``.

    The last part goes where the rest is the name of one layer: all its nodes have one operator, and
    no other node lies deeper.
    """
    paths = [(n.name or (n.output[0] if n.output else "")).strip("/").split("/") for n in nodes]
    operators: dict[tuple[str, ...], set[str]] = {}
    inner: set[tuple[str, ...]] = set()
    for path, node in zip(paths, nodes, strict=True):
        scope = tuple(path[:-1])
        operators.setdefault(scope, set()).add(node.op_type)
        inner.update(scope[:depth] for depth in range(len(scope)))
    names = []
    for path, node in zip(paths, nodes, strict=True):
        scope = tuple(path[:-1])
        leaf = scope and scope not in inner and len(operators[scope]) == 1
        leaf = leaf and path[-1].startswith(node.op_type)
        names.append(".".join(scope if leaf else path))
    return names
