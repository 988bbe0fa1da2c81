"""Float networks for the import tests: fixed ones for each operator, random ones; their export."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["SPELLINGS", "ZOO", "Func", "RandomNet", "export", "images", "randomise", "run_onnx"]


class Func(nn.Module):
    """A module whose forward is a function of the module and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Random parameters and statistics, so that no batch norm is trivial; some scales negative."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module.eval()


def images(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def export(
    module: nn.Module, shape: tuple[int, ...], opset: int = 17, *, dynamic: bool = True
) -> bytes:
    """The module as ONNX, batch norms kept."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that needs no further package is marked as deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, *shape),),
            file,
            dynamo=False,
            opset_version=opset,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}} if dynamic else None,
        )
    return file.getvalue()


def run_onnx(model: bytes | onnx.ModelProto, x: Tensor) -> NDArray[np.float32]:
    """Results of ONNX Runtime, unoptimised, on one thread."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result


def _residual(m: Any, x: Tensor) -> Tensor:
    y = m.relu(m.bn1(m.conv1(x)))
    z = m.relu(m.bn2(m.conv2(y)) + m.short(y))
    return m.fc(torch.flatten(m.pool(torch.cat([z, z], 1)), 1))


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(inplace=True),
        nn.Conv2d(6, 8, 1),
        nn.BatchNorm2d(8, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 5),
    )


ZOO: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (
        nn.Sequential(
            nn.Conv2d(1, 4, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, (3, 1), stride=(1, 2), padding=(1, 0)),
            nn.ReLU(),
            nn.AvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Linear(12, 7),
            nn.ReLU(),
            nn.Linear(7, 3, bias=False),
        ),
        (1, 12, 8),
    ),
    "depthwise": (_depthwise(), (3, 11, 9)),
    "residual": (
        Func(
            _residual,
            conv1=nn.Conv2d(2, 4, 3, padding=1),
            bn1=nn.BatchNorm2d(4),
            conv2=nn.Conv2d(4, 6, 3, stride=2, padding=1),
            bn2=nn.BatchNorm2d(6),
            short=nn.Conv2d(4, 6, 1, stride=2),
            relu=nn.ReLU(),
            pool=nn.AdaptiveMaxPool2d(1),
            fc=nn.Linear(12, 4),
        ),
        (2, 8, 8),
    ),
    "after_relu": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.BatchNorm1d(64),
            nn.Linear(64, 3),
        ),
        (1, 9, 9),
    ),
    "pools": (
        nn.Sequential(
            nn.Conv2d(2, 3, 1),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            nn.AvgPool2d(2, 1, 1),
            nn.AdaptiveAvgPool2d((5, 1)),
            nn.Flatten(),
            nn.Softmax(dim=1),
        ),
        (2, 13, 14),
    ),
    "vector": (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2)), (6,)),
}
for _seed, (_module, _) in enumerate(ZOO.values()):
    randomise(_module, _seed)

_CONV = randomise(nn.Conv2d(3, 4, 3, padding=1), 5)
_FC = randomise(nn.Linear(4, 2), 6)
_WIDE = randomise(nn.Linear(4 * 16, 2), 7)


def _head(feature: Callable[[Tensor], Tensor]) -> nn.Module:
    return Func(lambda m, x: m.fc(feature(m.conv(x))), conv=_CONV, fc=_FC)


def _wide(feature: Callable[[Tensor], Tensor]) -> nn.Module:
    return Func(lambda m, x: m.fc(feature(m.conv(x))), conv=_CONV, fc=_WIDE)


SPELLINGS: dict[str, list[nn.Module]] = {
    "relu": [
        _wide(lambda x: F.relu(x).flatten(1)),
        _wide(lambda x: torch.relu(x).view(x.size(0), -1)),
        _wide(lambda x: x.relu().reshape(x.shape[0], -1)),
        _wide(lambda x: x.relu_().flatten(1, -1)),
        _wide(lambda x: torch.flatten(x.clamp(min=0), 1)),
        _wide(lambda x: nn.Flatten()(torch.clamp_min(x, 0.0))),
        _wide(lambda x: F.dropout(F.relu(x, inplace=True), training=False).view(-1, 64)),
        _wide(lambda x: x.relu().contiguous()[:, :].reshape(-1, 64)),
    ],
    "relu6": [
        _wide(lambda x: F.relu6(x).flatten(1)),
        _wide(lambda x: F.hardtanh(x, 0.0, 6.0).flatten(1)),
        _wide(lambda x: x.clamp(0, 6).flatten(1)),
        _wide(lambda x: torch.clip(x, 0.0, 6.0).flatten(1)),
    ],
    "mean": [
        _head(lambda x: x.mean((2, 3))),
        _head(lambda x: torch.mean(x, dim=[-1, -2])),
        _head(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
        _head(lambda x: x.mean((2, 3), keepdim=True).view(-1, 4)),
        _head(lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1)),
        _head(lambda x: x.flatten(2).mean(2)),
        _head(lambda x: x.view(x.size(0), 4, -1).mean(-1)),
    ],
    "max": [
        _head(lambda x: torch.amax(x, (2, 3))),
        _head(lambda x: x.amax(dim=(2, 3), keepdim=True).flatten(1)),
        _head(lambda x: F.adaptive_max_pool2d(x, 1).flatten(1)),
    ],
    "add": [
        _wide(lambda x: (x + F.relu(x)).flatten(1)),
        _wide(lambda x: torch.add(x, F.relu(x)).flatten(1)),
    ],
}


class RandomNet(nn.Module):
    """A random network of every operator that converts: a chain with residual sums and joins."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.size = (int(self.rng.integers(1, 4)), *(int(n) for n in self.rng.integers(8, 15, 2)))
        self.steps: list[tuple[str, Any]] = []
        self.layers = nn.ModuleList()
        shape: tuple[int, ...] = self.size
        for _ in range(int(self.rng.integers(3, 8))):
            shape = self._grow(shape)
        self._layer(nn.Flatten())
        self._layer(nn.Linear(int(np.prod(shape)), 4, bias=bool(self.rng.integers(2))))
        del self.rng  # which cannot be copied
        randomise(self, seed)

    def _layer(self, layer: nn.Module) -> None:
        self.steps.append(("layer", len(self.layers)))
        self.layers.append(layer)

    def _try(self, layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
        out: tuple[int, ...] = tuple(layer.eval()(torch.zeros(1, *shape)).shape[1:])
        if min(out[1:]) < 2:
            return shape
        self._layer(layer)
        return out

    def _grow(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        r, channels = self.rng, shape[0]
        if min(shape[1:]) < 4:
            return shape
        pick = str(r.choice(["conv", "conv", "bn", "relu", "relu6", "max", "avg", "add", "cat"]))
        if pick == "conv":
            groups = channels if r.integers(3) == 0 else 1
            kernel = int(r.integers(1, 4))
            out = groups * int(r.integers(1, 3)) if groups > 1 else int(r.integers(2, 7))
            conv = nn.Conv2d(
                channels,
                out,
                kernel,
                stride=int(r.integers(1, 3)) if min(shape[1:]) > 6 else 1,
                padding=int(r.integers(0, kernel)),
                groups=groups,
                bias=bool(r.integers(2)),
            )
            return self._try(conv, shape)
        if pick == "bn":
            return self._try(nn.BatchNorm2d(channels, affine=bool(r.integers(2))), shape)
        if pick in ("relu", "relu6"):
            return self._try(nn.ReLU() if pick == "relu" else nn.ReLU6(), shape)
        if pick in ("max", "avg"):
            kernel = int(r.integers(2, 4))
            stride, pad = int(r.integers(1, 3)), int(r.integers(0, kernel // 2 + 1))
            # Before version 22 ONNX counts ceil-mode windows in the padding otherwise than torch.
            ceil = pad == 0 and bool(r.integers(2))
            if pick == "max":
                return self._try(nn.MaxPool2d(kernel, stride, pad, ceil_mode=ceil), shape)
            # ONNX spells a padding that counts as an operator of its own, without ceil mode's rule.
            include = bool(r.integers(2)) and not ceil
            pool = nn.AvgPool2d(kernel, stride, pad, ceil_mode=ceil, count_include_pad=include)
            return self._try(pool, shape)
        self.steps.append((pick, None))
        return shape if pick == "add" else (2 * channels, *shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        for kind, place in self.steps:
            if kind == "layer":
                x = self.layers[place](x)
            elif kind == "add":
                x = x + F.relu(x)
            else:
                x = torch.cat([x, F.relu(x)], 1)
        return x
