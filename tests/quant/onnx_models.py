"""Small ONNX models by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write(folder: Path, model: bytes | onnx.ModelProto) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


RNG = np.random.default_rng(3)


def const(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def model(
    nodes: list[onnx.NodeProto],
    constants: list[TensorProto],
    shape: tuple[Any, ...] = ("n", 2, 6, 7),
    opset: int = 17,
    **graph_fields: Any,
) -> onnx.ModelProto:
    """A model from ``x`` to ``y`` around the nodes."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        graph_fields.get("inputs", [info("x", TensorProto.FLOAT, shape)]),
        graph_fields.get("outputs", [info("y", TensorProto.FLOAT, None)]),
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


CONV = [const("w", RNG.normal(size=(3, 2, 3, 3))), const("b", RNG.normal(size=3))]
VECTOR = [const("w", RNG.normal(size=(5, 4))), const("b", RNG.normal(size=4))]
node = helper.make_node


def tail(source: str, operator: str, *inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    """A convolution, then one operator."""
    return [
        node("Conv", ["x", "w", "b"], [source], "conv"),
        node(operator, [source, *inputs], ["y"], "op", **attributes),
    ]
