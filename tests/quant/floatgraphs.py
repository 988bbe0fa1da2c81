"""Random small float graphs with every kind of node."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.ir import Network, TensorType
from quant.baseline import quantize_linear, with_preprocessing
from quant.config import LayerBits, QuantConfig
from quant.graph import (
    INPUT,
    Add,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Flatten,
    FloatGraph,
    GlobalAvgPool,
    GlobalMaxPool,
    Input,
    Linear,
    MaxPool,
    Node,
    Relu,
    Shape,
)
from quant.models import Preprocess

__all__ = [
    "RAW",
    "Maker",
    "floats",
    "pixels",
    "plain",
    "preprocessing",
    "quantise",
    "random_graph",
    "real",
    "widths",
]


def pixels(graph: FloatGraph, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Raw images with structure: a brightness, a ramp and noise each."""
    rng = np.random.default_rng(seed)
    shape = (count, *graph.input_shape)
    level = rng.uniform(0, 255, (count, *[1] * len(graph.input_shape)))
    ramp = np.linspace(-1, 1, shape[-1]) * rng.uniform(-90, 90, level.shape)
    return np.clip(level + ramp + rng.normal(0, 40, shape), 0, 255).astype(np.uint8)


def preprocessing(graph: FloatGraph, seed: int) -> Preprocess:
    """About zero mean and unit range, different by channel."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(2, 6, graph.input_shape[0]) / 255
    return Preprocess(scale=tuple(scale), offset=tuple(-128 * scale))


class Maker:
    """Appends nodes; every method takes the name of a tensor and returns that of the new one."""

    def __init__(self, shape: Shape, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[Node] = [Input(name=INPUT, inputs=(), size=shape)]
        self.shapes: dict[str, Shape] = {INPUT: shape}

    def put(self, kind: type[Node], *inputs: str, **fields: Any) -> str:
        name = f"{kind.__name__.lower()}{len(self.nodes)}"
        node = kind(name=name, inputs=inputs, **fields)
        self.shapes[name] = node.shape(*(self.shapes[i] for i in inputs))
        self.nodes.append(node)
        return name

    def graph(self, output: str) -> FloatGraph:
        return FloatGraph(nodes=tuple(self.nodes), output=output)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def conv(
        self,
        x: str,
        out: int | None = None,
        *,
        same: bool = False,
        groups: int = 1,
        kernel: int | None = None,
    ) -> str:
        """``same`` keeps height and width; else stride and padding are random."""
        channels, height, width = self.shapes[x]
        out = out or groups * self.number(1, 4)
        if same:
            size = (kernel or 3,) * 2
            stride, padding = (1, 1), (size[0] // 2,) * 4
        else:
            size = (self.number(1, min(3, height)), self.number(1, min(3, width)))
            stride = (self.number(1, 2), self.number(1, 2))
            pads = [self.number(0, k - 1) if self.chance(0.5) else 0 for k in (*size, *size)]
            padding = (pads[0], pads[1], pads[2], pads[3])
        fan_in = channels // groups * size[0] * size[1]
        weight = self.rng.normal(0, 1.5 / np.sqrt(fan_in), (out, channels // groups, *size))
        bias = self.rng.normal(0, 0.3, out) if self.chance(0.8) else np.zeros(out)
        return self.put(
            Conv, x, weight=weight, bias=bias, stride=stride, padding=padding, groups=groups
        )

    def linear(self, x: str, out: int) -> str:
        features = self.shapes[x][0]
        weight = self.rng.normal(0, 1.5 / np.sqrt(features), (out, features))
        return self.put(Linear, x, weight=weight, bias=self.rng.normal(0, 0.3, out))

    def relu(self, x: str) -> str:
        return self.put(Relu, x, max=[None, 6.0, 0.7][self.number(0, 2)])

    def norm(self, x: str) -> str:
        channels = self.shapes[x][0]
        scale = self.rng.uniform(0.3, 2, channels) * self.rng.choice([1, 1, 1, -1], channels)
        return self.put(ChannelAffine, x, scale=scale, offset=self.rng.normal(0, 0.5, channels))

    def pool(self, x: str) -> str:
        _, height, width = self.shapes[x]
        kernel = (self.number(1, min(3, height)), self.number(1, min(3, width)))
        padding = tuple(self.number(0, k // 2) for k in (*kernel, *kernel))
        fields: dict[str, Any] = {
            "kernel": kernel,
            "stride": (self.number(1, 3), self.number(1, 3)),
            "padding": padding if self.chance(0.4) else (0, 0, 0, 0),
            "ceil_mode": self.chance(0.5),
        }
        if self.chance(0.5):
            return self.put(MaxPool, x, **fields)
        return self.put(AvgPool, x, **fields, count_include_pad=self.chance(0.5))

    def residual(self, x: str) -> str:
        branch = self.conv(x, self.shapes[x][0], same=True)
        if self.chance(0.5):
            branch = self.conv(self.relu(branch), self.shapes[x][0], same=True)
        if self.chance(0.5):
            x = self.conv(x, self.shapes[x][0], same=True, kernel=1)
        total = self.put(Add, x, branch) if self.chance(0.5) else self.put(Add, branch, x)
        return self.relu(total) if self.chance(0.7) else total

    def inception(self, x: str) -> str:
        branches = [self.conv(x, same=True, kernel=1)]
        if self.chance(0.7):
            branches[0] = self.relu(branches[0])
        if self.chance(0.5):
            kernel, padding = (3, 3), (1, 1, 1, 1)
            branches.append(self.put(MaxPool, x, kernel=kernel, stride=(1, 1), padding=padding))
        if self.chance(0.5) or len(branches) == 1:
            branches.append(x)
        return self.put(Concat, *branches)

    def depthwise(self, x: str) -> str:
        return self.conv(x, groups=self.shapes[x][0])

    def tail(self, x: str) -> str:
        """From an image to the output."""
        ending = self.number(0, 4)
        if ending == 0:
            return self.conv(x)
        if ending <= 2:
            x = self.put(GlobalAvgPool if ending == 1 else GlobalMaxPool, x)
            if self.chance(0.3):
                return self.put(Flatten, self.conv(x, 4, same=True, kernel=1))
        x = self.put(Flatten, x)
        if self.chance(0.5):
            x = self.relu(self.linear(x, self.number(2, 6)))
        if self.chance(0.3):
            x = self.put(Concat, self.linear(x, 3), self.relu(self.linear(x, 2)))
        return self.linear(x, self.number(2, 5))


def random_graph(seed: int) -> FloatGraph:
    """A graph of a few blocks: plain, grouped, residual or branching; pools; batch norms."""
    rng = np.random.default_rng(seed)
    maker = Maker((int(rng.integers(1, 4)), *(int(v) for v in rng.integers(4, 9, 2))), rng)
    blocks = [
        lambda x: maker.conv(x),
        lambda x: maker.relu(maker.conv(x)),
        lambda x: maker.norm(maker.relu(maker.conv(x))),
        lambda x: maker.relu(maker.norm(maker.conv(x))),
        maker.norm,
        maker.relu,
        maker.pool,
        maker.pool,
        maker.residual,
        maker.residual,
        maker.inception,
        maker.inception,
        maker.depthwise,
    ]
    x = INPUT
    for _ in range(maker.number(1, 4)):
        x = blocks[maker.number(0, len(blocks) - 1)](x)
    return maker.graph(maker.tail(x))


def plain() -> FloatGraph:
    """conv, ReLU, pool, conv, ReLU6, flatten, linear, ReLU, linear."""
    maker = Maker((1, 12, 12), np.random.default_rng(5))
    weight, bias = maker.rng.normal(0, 0.5, (4, 1, 3, 3)), maker.rng.normal(0, 0.3, 4)
    x = maker.put(Relu, maker.put(Conv, INPUT, weight=weight, bias=bias))
    x = maker.put(MaxPool, x, kernel=(2, 2), stride=(2, 2))
    x = maker.put(Relu, maker.conv(x, 6, same=True), max=6.0)
    x = maker.put(Relu, maker.linear(maker.put(Flatten, x), 8))
    return maker.graph(maker.linear(x, 4))


RAW = Preprocess(scale=(1.0,), offset=(0.0,))


def quantise(graph: FloatGraph, seed: int = 0, **config: Any) -> tuple[Network, FloatGraph]:
    """The integer network and the float network of raw pixels, calibrated on ``pixels``."""
    preprocess = preprocessing(graph, seed)
    network = quantize_linear(
        graph,
        preprocess=preprocess,
        calibration=pixels(graph, 24, seed),
        config=QuantConfig(**config),
    )
    return network, with_preprocessing(graph, preprocess)


def widths(bits: int) -> LayerBits:
    """All of ``bits``, biases at least 12."""
    return LayerBits(weights=bits, biases=max(bits, 12), activations=bits)


def floats(graph: FloatGraph, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Every tensor of the float network of raw pixels, ``(N, *shape)``."""
    (values,) = graph.activations(torch.tensor(images, dtype=torch.float64), batch_size=1000)
    return {name: tensor.numpy() for name, tensor in values.items()}


def real(kind: TensorType, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The values that codes stand for."""
    return codes.astype(np.float64) * np.float64(kind.scale)
