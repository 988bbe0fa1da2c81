"""Images per second of the golden model against ONNX Runtime's int8, on one thread.

Both run LeNet-5 (32x32x3, 8 bits, random weights) on the same batch in turn, round by round; the
best round of each counts, as other processes only ever slow a round down. Exits with status 1 where
the golden model reaches less than the required share of ONNX Runtime's rate.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from threadpoolctl import threadpool_limits

from hwgen.ir import (
    INPUT,
    Bias,
    Conv,
    Flatten,
    Geometry,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    TensorType,
    Weights,
    mac_interval,
    signed_width,
)

REQUIRED = 0.8
"""Least share of ONNX Runtime's rate."""

CONVOLUTIONS = ((6, 5), (16, 5))
"""Output channels and kernel of each convolution; a ReLU and a 2x2 max pool follow."""

LINEAR = (120, 84, 10)
"""Outputs of each linear layer; a ReLU follows all but the last."""


def golden_lenet(rng: np.random.Generator) -> Network:
    """LeNet-5 with random 8-bit weights and 8-bit activations."""
    source = kind = TensorType(shape=(3, 32, 32), width=8, signed=False)
    name, ops = INPUT, []

    def weights(*shape: int) -> tuple[Weights, Bias]:
        codes = np.clip(np.rint(rng.normal(0, 40, shape)), -127, 127).astype(np.int64)
        bias = Bias(codes=rng.integers(-100, 100, shape[0]), width=8, shift=5)
        return Weights(codes=codes, width=8), bias

    def append(op: Op) -> None:
        nonlocal name, kind
        ops.append(op)
        name, kind = op.name, op.output

    requant = Requant(shift=(10,), low=(0,), high=(255,))
    for index, (outputs, size) in enumerate(CONVOLUTIONS, 1):
        channels, height, width = kind.shape
        constants = weights(outputs, channels, size, size)
        g = Geometry(height=height, width=width, kernel=(size, size))
        shape = (outputs, g.out_height, g.out_width)
        append(
            Conv(
                name=f"conv{index}",
                inputs=(name,),
                input=kind,
                weights=constants[0],
                bias=constants[1],
                geometry=g,
                requant=requant,
                output=TensorType(shape=shape, width=8, signed=False),
            )
        )
        half = (outputs, g.out_height // 2, g.out_width // 2)
        g = Geometry(height=g.out_height, width=g.out_width, kernel=(2, 2), stride=(2, 2))
        pooled = TensorType(shape=half, width=8, signed=False)
        append(MaxPool(name=f"pool{index}", inputs=(name,), input=kind, geometry=g, output=pooled))
    vector = TensorType(shape=(kind.size,), width=8, signed=False)
    append(Flatten(name="flatten", inputs=(name,), input=kind, output=vector))
    for index, outputs in enumerate(LINEAR, 1):
        constants = weights(outputs, kind.channels)
        last = index == len(LINEAR)
        output = TensorType(shape=(outputs,), width=8, signed=False)
        if last:
            low, high = mac_interval(kind, *constants)
            width = signed_width(int(low.min()), int(high.max()))
            output = TensorType(shape=(outputs,), width=width, signed=True)
        append(
            Linear(
                name=f"linear{index}",
                inputs=(name,),
                input=kind,
                weights=constants[0],
                bias=constants[1],
                requant=None if last else requant,
                output=output,
            )
        )
    return Network(name="lenet5", input=source, ops=tuple(ops), output=name)


def float_lenet(rng: np.random.Generator) -> onnx.ModelProto:
    """LeNet-5 in float, for ONNX Runtime to quantise."""
    nodes, constants = [], []
    name, channels, side = "x", 3, 32

    def layer(kind: str, label: str, *shape: int, **attributes: Any) -> None:
        nonlocal name
        fan = int(np.prod(shape[1:]))
        values = rng.normal(0, fan**-0.5, shape), rng.normal(0, 0.1, shape[0])
        for suffix, array in zip("wb", values, strict=True):
            tensor = numpy_helper.from_array(array.astype(np.float32), label + suffix)
            constants.append(tensor)
        inputs = [name, label + "w", label + "b"]
        nodes.append(helper.make_node(kind, inputs, [label], **attributes))
        name = label

    def follow(kind: str, **attributes: Any) -> None:
        nonlocal name
        label = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, [name], [label], **attributes))
        name = label

    for index, (outputs, size) in enumerate(CONVOLUTIONS, 1):
        layer("Conv", f"conv{index}", outputs, channels, size, size, kernel_shape=[size, size])
        follow("Relu")
        follow("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        channels, side = outputs, (side - size + 1) // 2
    follow("Flatten")
    features = channels * side * side
    for index, outputs in enumerate(LINEAR, 1):
        layer("Gemm", f"linear{index}", outputs, features, transB=1)
        features = outputs
        if index < len(LINEAR):
            follow("Relu")
    graph = helper.make_graph(
        nodes,
        "lenet5",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", LINEAR[-1]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """One batch of images."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._batches: Iterator[dict[str, Any]] = iter([{"x": images}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def int8_session(rng: np.random.Generator) -> onnxruntime.InferenceSession:
    """Statically quantised LeNet-5 (uint8 activations, int8 weights) on one thread."""
    images = rng.random((100, 3, 32, 32), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(float_lenet(rng), plain)
        quantize_static(
            plain,
            quantised,
            _Calibration(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnxruntime.InferenceSession(
            quantised.read_bytes(), options, providers=["CPUExecutionProvider"]
        )


def seconds(run: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(images: int, rounds: int) -> tuple[float, float]:
    """Images per second of the golden model and of ONNX Runtime."""
    rng = np.random.default_rng(0)
    network, session = golden_lenet(rng), int8_session(rng)
    codes = rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    floats = codes.astype(np.float32) / 255
    runs: tuple[Callable[[], object], ...] = (
        lambda: network.evaluate(codes),
        lambda: session.run(None, {"x": floats}),
    )
    best = [float("inf")] * len(runs)
    with threadpool_limits(limits=1):
        for run in runs:
            run()
        for _ in range(rounds):
            for index, run in enumerate(runs):
                best[index] = min(best[index], seconds(run))
    return images / best[0], images / best[1]


def main() -> int:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=20, help="rounds; the best counts")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    golden, other = measure(arguments.images, arguments.rounds)
    ratio = golden / other
    print(f"golden model       {golden:10,.0f} images/s")
    print(f"ONNX Runtime int8  {other:10,.0f} images/s")
    print(f"ratio              {ratio:10.2f} (at least {REQUIRED})")
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
