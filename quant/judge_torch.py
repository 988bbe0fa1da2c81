"""Computes layers for a judge with PyTorch, on a GPU where there is one.

Values are ``code - zero`` in float32, float64 or int64 under the bounds of :mod:`hwgen.ir.kernels`;
dot products are matrix products of gathered windows, so that no convolution algorithm rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hwgen.errors import BadInput
from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Geometry,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MacOp,
    MaxPool,
    Op,
    Requant,
    Rescale,
    Rounding,
    TensorType,
)
from hwgen.ir.affine import Affine, float_for
from hwgen.ir.kernels import MacFacts
from quant.judge_runner import Job, Parts, Take, stored_type

__all__ = ["TorchRunner"]

PART = 2000
"""Most images in a part."""

WORKING_SET = {"cpu": 1 << 25, "cuda": 1 << 30}
"""Bytes that the windows of a batch may take."""

DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(getattr(np, name)): getattr(torch, name)
    for name in ("float32", "float64", "uint8", "int8", "int16", "int32", "int64")
}


class TorchRunner:
    """A :class:`quant.judge_runner.Runner` through PyTorch.

    Parameters
    ----------
    images : integer array
        ``(N, *shape)``.
    device : str
        A device of PyTorch.

    Raises
    ------
    BadInput
        If the device is not there, or its matrix products round.
    """

    def __init__(self, images: NDArray[np.uint8], device: str) -> None:
        self._device = _device(device)
        self._check_exact()
        starts = range(0, len(images), PART)
        self._places = [slice(i, min(i + PART, len(images))) for i in starts]
        self.images: Parts = [
            torch.tensor(images[place], device=self._device) for place in self._places
        ]

    def _check_exact(self) -> None:
        """Refuse a device whose float32 products of large integers are inexact."""
        values = torch.arange(4095, 4095 - 256, -1, dtype=torch.float32, device=self._device)
        with _full_precision():
            found = (values.reshape(-1, 1) @ values.reshape(1, -1)).to(torch.int64)
        if not torch.equal(found, torch.outer(values, values).to(torch.int64)):
            raise BadInput(
                f"matrix products of float32 on {self._device} are rounded; turn TF32 and other"
                " reduced precision off, or judge on the cpu"
            )

    def run(self, job: Job, tensors: Mapping[str, Parts]) -> dict[str, Parts]:
        """See :class:`quant.judge_runner.Runner`."""
        kept: dict[str, Parts] = {name: [] for name in job.outputs}
        layers = _Layers(job, self._device)
        for index in range(len(self._places)):
            made = [found for _, found in self._batches(layers, job, tensors, index)]
            for name, kind in job.outputs.items():
                dtype = DTYPES[stored_type(kind)]
                kept[name].append(torch.cat([found[name].to(dtype) for found in made]))
        return kept

    def outputs(self, job: Job, tensors: Mapping[str, Parts], take: Take) -> int:
        """See :class:`quant.judge_runner.Runner`."""
        ((name, kind),) = job.outputs.items()
        layers, done = _Layers(job, self._device), 0
        for index, place in enumerate(self._places):
            for first, found in self._batches(layers, job, tensors, index):
                codes = found[name].to(torch.int64).cpu().numpy() + kind.zero
                done += len(codes)
                if not take(place.start + first, codes):
                    return done
        return done

    def _batches(
        self, layers: _Layers, job: Job, tensors: Mapping[str, Parts], index: int
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The outputs of each batch of a part, and where in the part it begins."""
        place = self._places[index]
        size = place.stop - place.start
        step = max(1, min(WORKING_SET[self._device.type] // layers.bytes, size))
        for first in range(0, size, step):
            values = {}
            for name, kind in job.sources.items():
                codes = tensors[name][index][first : first + step]
                value = codes.to(_value_dtype(kind))
                values[name] = value - kind.zero if name == INPUT and kind.zero else value
            with torch.inference_mode(), _full_precision():
                yield first, layers(values)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(
            f"the device of a judge must be cpu, torch or cuda, perhaps with a number, not {name}"
        ) from None
    if device.type not in WORKING_SET:
        raise BadInput(f"a judge computes on cpu, torch or cuda, not on {device.type}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise BadInput(
                f"there is no device {name} here ({count} CUDA devices are usable); take cpu"
            )
    return device


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without TF32 and the like, whatever the caller has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _value_dtype(kind: TensorType) -> torch.dtype:
    bound = max(abs(kind.minimum - kind.zero), abs(kind.maximum - kind.zero))
    return DTYPES[float_for(bound) or np.dtype(np.int64)]


class _Layers:
    """The layers of a job with their constants on the device."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self._weights: dict[str, Tensor | None] = {}
        self._facts: dict[str, MacFacts] = {}
        self.bytes = 1
        for op in job.ops:
            size = 8 * (op.output.size + sum(kind.size for kind in op.input_types))
            if isinstance(op, MacOp):
                facts = self._facts[op.name] = MacFacts.of(op)
                dtype = float_for(facts.bound)
                codes = op.weights.codes
                self._weights[op.name] = None
                if dtype is not None:
                    codes = np.array(codes.astype(dtype))
                    self._weights[op.name] = torch.from_numpy(codes).to(device)
                size += 8 * codes[0].size * op.output.pixels * getattr(op, "groups", 1)
            self.bytes = max(self.bytes, size)

    def __call__(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values of the job's outputs from those of its sources, ``(n, *shape)``."""
        values = dict(values)
        for op in self._job.ops:
            sources = [values[name] for name in op.inputs]
            made = self._layer(op, sources)
            if made is None:
                made = _direct(op, sources)
            values[op.name] = made.to(_value_dtype(op.output))
        return {name: values[name] for name in self._job.outputs}

    def _layer(self, op: Op, sources: list[Tensor]) -> Tensor | None:
        """A layer in floating point, None where that is not exact."""
        x = sources[0]
        match op:
            case Conv() | Linear():
                return self._mac(op, x)
            case MaxPool():
                fill = op.input.minimum - op.input.zero
                return _windows(x, op.geometry, fill).amax(dim=(4, 5))
            case GlobalMaxPool():
                return x.amax(dim=(2, 3))
            case Flatten():
                return x.flatten(1)
            case Concat():
                dtype = _value_dtype(op.output)
                return torch.cat([source.to(dtype) for source in sources], dim=1)
            case Rescale():
                return _requantise(Affine.of(op.requant, *op.accumulator_interval()), x)
            case _:
                return _sum(op, sources)

    def _mac(self, op: MacOp, x: Tensor) -> Tensor | None:
        weights, facts = self._weights[op.name], self._facts[op.name]
        if weights is None or not x.is_floating_point():
            return None
        x = x.to(weights.dtype)
        if isinstance(op, Conv):
            g, groups = op.geometry, op.groups
            taps = _windows(x, g, 0)  # (n, C, OH, OW, KH, KW)
            taps = taps.reshape(len(x), groups, -1, *taps.shape[2:])
            columns = taps.permute(0, 1, 2, 5, 6, 3, 4).reshape(len(x), groups, -1, g.positions)
            rows = weights.reshape(groups, op.out_channels // groups, -1)
            dot = torch.matmul(rows, columns).reshape(len(x), *op.output.shape)
        else:
            dot = torch.matmul(x, weights.T)
        if facts.affine is not None:
            return _requantise(facts.affine, dot)
        if op.bias is None:
            return dot
        bias = torch.tensor(op.bias.values, device=dot.device).to(dot.dtype)
        return dot + _spread(bias, dot)


def _direct(op: Op, sources: list[Tensor]) -> Tensor:
    """``Op.evaluate`` itself."""
    codes = [
        source.to(torch.int64).cpu().numpy() + kind.zero
        for source, kind in zip(sources, op.input_types, strict=True)
    ]
    return torch.from_numpy(op.evaluate(*codes) - op.output.zero).to(sources[0].device)


def _windows(x: Tensor, g: Geometry, fill: int) -> Tensor:
    """All windows, ``(n, C, out rows, out columns, kernel rows, kernel columns)``."""
    top, left, bottom, right = g.overhang
    if max(g.overhang):
        x = functional.pad(x, (left, right, top, bottom), value=fill)
    taken = x.unfold(2, g.kernel[0], g.stride[0]).unfold(3, g.kernel[1], g.stride[1])
    return taken[:, :, : g.out_height, : g.out_width]


def _sum(op: Op, sources: list[Tensor]) -> Tensor | None:
    """Averages and residual additions."""
    assert isinstance(op, Add | AvgPool | GlobalAvgPool)
    largest = [max(abs(t.minimum - t.zero), abs(t.maximum - t.zero), 1) for t in op.input_types]
    if isinstance(op, Add):
        factors = op.mult
        bound = sum(max(abs(m), 1) * top for m, top in zip(op.mult, largest, strict=True))
    else:
        taps = op.geometry.taps if isinstance(op, AvgPool) else op.input.pixels
        factor = int(op.multipliers.max()) if isinstance(op, AvgPool) else 1
        bound = largest[0] * taps * factor
    dtype = float_for(bound)
    if dtype is None or not all(source.is_floating_point() for source in sources):
        return None
    values = [source.to(DTYPES[dtype]) for source in sources]
    if isinstance(op, Add):
        acc = values[0] * factors[0] + values[1] * factors[1]
    elif isinstance(op, GlobalAvgPool):
        acc = values[0].sum(dim=(2, 3))
    else:
        acc = _windows(values[0], op.geometry, 0).sum(dim=(4, 5))
        acc = acc * torch.tensor(op.multipliers, device=acc.device).to(acc.dtype)
    return _requantise(Affine.of(op.requant, *op.accumulator_interval()), acc)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """One value a channel, against ``(n, C, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _requantise(affine: Affine, dot: Tensor) -> Tensor | None:
    """``code - zero`` of dot products; None where float64 is not exact."""
    dtype = float_for(affine.bound)
    if dtype is None or not dot.is_floating_point():
        return None
    value = dot.to(torch.promote_types(DTYPES[dtype], dot.dtype))

    def column(numbers: tuple[int, ...] | list[float]) -> Tensor:
        return _spread(torch.tensor(numbers, dtype=value.dtype, device=value.device), value)

    requant: Requant = affine.requant
    value = value + column(affine.bias)
    if requant.relu:
        value = value.clamp(min=0)
    value = value * column(affine.mult) + column(affine.add)
    if any(affine.shift):
        if requant.rounding is Rounding.HALF_UP:
            value = value + column([float((1 << s) >> 1) for s in affine.shift])
        value = value * column([2.0**-s for s in affine.shift])
        match requant.rounding:
            case Rounding.HALF_EVEN:
                value = value.round()
            case Rounding.HALF_AWAY:
                value = torch.trunc(value + torch.copysign(torch.full_like(value, 0.5), value))
            case _:
                value = value.floor()
    return torch.minimum(torch.maximum(value, column(affine.low)), column(affine.high))
