"""Random small integer networks and input codes for tests of all parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Bias,
    Concat,
    Conv,
    Fixed,
    Flatten,
    Geometry,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    Rescale,
    Rounding,
    TensorType,
    Weights,
    mac_interval,
    signed_width,
)
from hwgen.ir.ops.windows import outside_taps

__all__ = ["networks", "random_codes", "random_network", "random_requant", "random_type"]

HARDWARE_ROUNDINGS = (Rounding.FLOOR, Rounding.HALF_UP, Rounding.HALF_EVEN)
"""The roundings that hardware implements."""


def networks(*, hardware_only: bool = True) -> st.SearchStrategy[Network]:
    """Strategy for :func:`random_network`."""
    seeds = st.integers(0, 2**32 - 1)
    return st.builds(random_network, seeds, hardware_only=st.just(hardware_only))


def random_codes(network: Network | TensorType, frames: int, seed: int = 0) -> NDArray[np.int64]:
    """Input codes ``(frames, *shape)``; the second frame all lowest codes, the third all
    highest."""
    kind = network.input if isinstance(network, Network) else network
    rng = np.random.default_rng(seed)
    codes = rng.integers(kind.minimum, kind.maximum, (frames, *kind.shape), endpoint=True)
    if frames > 2:
        codes[1], codes[2] = kind.minimum, kind.maximum
    return codes


def random_width(rng: np.random.Generator) -> int:
    """1 to 16 bits, all of them, 4 and 8 oftener."""
    return int(rng.choice([4, 8, rng.integers(1, 17), rng.integers(2, 9)]))


def random_type(rng: np.random.Generator, shape: tuple[int, ...]) -> TensorType:
    """A type of 1 to 16 bits that may have a zero point and a narrowed range."""
    width, signed = random_width(rng), bool(rng.integers(2))
    storage = Fixed(width=width, frac=0, signed=signed)
    low, high, zero = storage.low, storage.high, 0
    if rng.random() < 0.3:
        zero = int(rng.integers(low, high, endpoint=True))
    if rng.random() < 0.2:
        quarter = (high - low) // 4
        low, high = low + int(rng.integers(quarter + 1)), high - int(rng.integers(quarter + 1))
    return TensorType(
        shape=shape, width=width, signed=signed, scale=0.25, zero=zero, low=low, high=high
    )


def random_requant(
    rng: np.random.Generator,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    output: TensorType,
    *,
    roundings: Sequence[Rounding] = tuple(Rounding),
    extra: np.random.Generator | None = None,
) -> Requant:
    """A requantiser for accumulators in ``low..high`` (one entry a channel) whose results vary.

    Per tensor or per channel: multipliers (also negative), offsets, shifts, bounds; perhaps a ReLU.
    ``extra`` sometimes makes it nothing but a shift for each channel.
    """
    channels = low.shape[0]

    def some(bottom: int, top: int, per_channel: float = 0.4) -> tuple[int, ...]:
        count = channels if rng.random() < per_channel else 1
        return tuple(int(v) for v in rng.integers(bottom, top, size=count, endpoint=True))

    if extra is not None and extra.random() < 0.15:
        return shifts_of_channels(extra, low, high, output, roundings)
    relu = bool(rng.random() < 0.15)
    mult: tuple[int, ...] = (1,)
    if rng.random() < 0.4:
        mult = some(-90, 90) if rng.random() < 0.3 else some(1, 200)
    start, end = int(low.min()), int(high.max())
    if relu:
        start, end = max(start, 0), max(end, 0)
    spread = max((end - start) * max(abs(m) for m in mult), 1).bit_length()
    exact = max(spread - output.width, 0)
    shift = some(max(exact - 4, 0), exact + 1)
    add = (0,)
    if rng.random() < 0.7:  # the middle of the accumulators to about the middle of the codes
        middle = (output.minimum + output.maximum) // 2 - output.zero
        full = [np.resize(np.array(v), channels) for v in (mult, shift)]
        each = [
            (middle << int(s)) - (start + end) // 2 * int(m) for m, s in zip(*full, strict=True)
        ]
        noise = 1 << max(spread - 3, 0)
        add = tuple(v + int(rng.integers(-noise, noise)) for v in each)
    bottom: tuple[int, ...] = (output.minimum,)
    top: tuple[int, ...] = (output.maximum,)
    if rng.random() < 0.4 and output.minimum < output.zero < (output.minimum + output.maximum) / 2:
        bottom = (output.zero,)  # ReLU as a bound
    if rng.random() < 0.15:
        three_quarters = max(bottom) + (output.maximum - max(bottom)) * 3 // 4
        top = some(three_quarters, output.maximum)
    return Requant(
        mult=mult,
        add=add,
        shift=shift,
        low=bottom,
        high=top,
        zero=output.zero,
        rounding=roundings[int(rng.integers(len(roundings)))],
        relu=relu,
    )


def with_codebook(
    rng: np.random.Generator, codes: NDArray[np.int64], form: Fixed
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """The nearest of 1 to 32 random entries for each code, and the entries; half of them with 0."""
    drawn = rng.integers(form.low, form.high, int(rng.integers(1, 33)), endpoint=True)
    drawn[0] = 0 if rng.random() < 0.5 else form.high
    entries = np.unique(drawn)
    nearest = np.abs(codes[..., None] - entries).argmin(axis=-1)
    return entries[nearest], tuple(entries.tolist())


def shifts_of_channels(
    rng: np.random.Generator,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    output: TensorType,
    roundings: Sequence[Rounding],
) -> Requant:
    """Nothing but a shift for each channel, as weights with power-of-two scales need."""
    exact = [
        max((int(top) - int(bottom)).bit_length() - output.width, 0)
        for bottom, top in zip(low, high, strict=True)
    ]
    return Requant(
        shift=tuple(max(s + int(rng.integers(-2, 2)), 0) for s in exact),
        low=(output.minimum,),
        high=(output.maximum,),
        zero=output.zero,
        rounding=roundings[int(rng.integers(len(roundings)))],
    )


class _Builder:
    """Appends random layers to a network."""

    def __init__(
        self, rng: np.random.Generator, source: TensorType, *, hardware_only: bool
    ) -> None:
        self.rng = rng
        self.extra = rng.spawn(1)[0]  # of what came later, so that the rest stays as it was
        self.hardware_only = hardware_only
        self.roundings = HARDWARE_ROUNDINGS if hardware_only else tuple(Rounding)
        self.input = source
        self.ops: list[Op] = []
        self.tensors = {INPUT: random_codes(source, 4)}

    def step(self, append: Callable[[], None], tries: int = 6) -> None:
        """``append`` layers; another attempt where no code differs between random frames."""
        count = len(self.ops)
        while True:
            append()
            for op in self.ops[count:]:
                self.tensors[op.name] = op.evaluate(*(self.tensors[i] for i in op.inputs))
            made = self.tensors[self.ops[-1].name]
            tries -= 1
            if (made[0] != made[3]).any() or not tries:
                return
            del self.ops[count:]

    @property
    def last(self) -> tuple[str, TensorType]:
        return (self.ops[-1].name, self.ops[-1].output) if self.ops else (INPUT, self.input)

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.ops)}"

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def requant(
        self, interval: tuple[NDArray[np.int64], NDArray[np.int64]], output: TensorType
    ) -> Requant:
        return random_requant(
            self.rng, *interval, output, roundings=self.roundings, extra=self.extra
        )

    def weights(self, shape: tuple[int, ...]) -> Weights:
        width, signed = random_width(self.rng), self.chance(0.9)
        form = Fixed(width=width, frac=0, signed=signed)
        codes = self.rng.integers(form.low, form.high, shape, endpoint=True)
        if self.chance(0.2):
            codes[self.rng.random(shape) < 0.5] = 0
        codebook: tuple[int, ...] | None = None
        scale: tuple[float, ...] = (0.5,)
        if self.extra.random() < 0.3:
            codes, codebook = with_codebook(self.extra, codes, form)
        if self.extra.random() < 0.3:
            scale = tuple(2.0 ** int(e) for e in self.extra.integers(-6, 3, shape[0]))
        return Weights(codes=codes, width=width, signed=signed, scale=scale, codebook=codebook)

    def bias(self, outputs: int) -> Bias | None:
        if self.chance(0.3):
            return None
        width = random_width(self.rng)
        codes = self.rng.integers(-(1 << (width - 1)), 1 << (width - 1), outputs)
        return Bias(codes=codes, width=width, shift=self.number(0, 4))

    def geometry(self, kind: TensorType, *, ceil_mode: bool, largest: int = 3) -> Geometry:
        _, height, width = kind.shape
        kernel = self.number(1, min(largest, height)), self.number(1, min(largest, width))
        if self.chance(0.5):
            kernel = (min(kernel),) * 2
        stride = self.number(1, 3), self.number(1, 3)
        if self.chance(0.6):
            stride = (1, 1) if self.chance(0.5) else kernel
        padding = (0, 0, 0, 0)
        if self.chance(0.5):
            k = (*kernel, *kernel)
            padding = tuple(self.number(0, min(size - 1, 2)) for size in k)  # type: ignore[assignment]
        return Geometry(
            height=height,
            width=width,
            kernel=kernel,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode and self.chance(0.4),
        )

    def conv(self) -> None:
        name, kind = self.last
        geometry = self.geometry(kind, ceil_mode=False)
        groups, outputs = 1, self.number(1, 5)
        if not self.hardware_only and self.chance(0.4):
            groups = int(self.rng.choice([g for g in range(1, 6) if kind.channels % g == 0]))
            outputs = groups * self.number(1, 2)
        weights = self.weights((outputs, kind.channels // groups, *geometry.kernel))
        bias = self.bias(outputs)
        shape = (outputs, geometry.out_height, geometry.out_width)
        interval = mac_interval(kind, weights, bias, padded=outside_taps(geometry))
        output, requant = self.result(shape, interval, raw=0.1)
        self.ops.append(
            Conv(
                name=self.name("conv"),
                inputs=(name,),
                input=kind,
                weights=weights,
                bias=bias,
                geometry=geometry,
                groups=groups,
                requant=requant,
                output=output,
            )
        )

    def result(
        self,
        shape: tuple[int, ...],
        interval: tuple[NDArray[np.int64], NDArray[np.int64]],
        *,
        raw: float,
    ) -> tuple[TensorType, Requant | None]:
        """Output type and requantiser of a MAC layer; with probability ``raw`` its accumulators."""
        low, high = min(int(interval[0].min()), 0), max(int(interval[1].max()), 0)
        width = signed_width(low, high)
        if self.chance(raw) and width <= 24:
            return TensorType(shape=shape, width=width, signed=True), None
        output = random_type(self.rng, shape)
        return output, self.requant(interval, output)

    def linear(self, *, raw: float = 0.1) -> None:
        name, kind = self.last
        outputs = self.number(1, 9)
        weights, bias = self.weights((outputs, kind.channels)), self.bias(outputs)
        output, requant = self.result((outputs,), mac_interval(kind, weights, bias), raw=raw)
        self.ops.append(
            Linear(
                name=self.name("linear"),
                inputs=(name,),
                input=kind,
                weights=weights,
                bias=bias,
                requant=requant,
                output=output,
            )
        )

    def like(self, kind: TensorType, shape: tuple[int, ...]) -> TensorType:
        """The same format in another shape."""
        return TensorType(
            shape=shape,
            width=kind.width,
            signed=kind.signed,
            scale=kind.scale,
            zero=kind.zero,
            low=kind.low,
            high=kind.high,
        )

    def max_pool(self) -> None:
        name, kind = self.last
        g = self.geometry(kind, ceil_mode=True)
        output = self.like(kind, (kind.channels, g.out_height, g.out_width))
        self.ops.append(
            MaxPool(name=self.name("max"), inputs=(name,), input=kind, geometry=g, output=output)
        )

    def avg_pool(self) -> None:
        name, kind = self.last
        g = self.geometry(kind, ceil_mode=not self.hardware_only)
        include = self.hardware_only or self.chance(0.5)
        output = random_type(self.rng, (kind.channels, g.out_height, g.out_width))
        # The interval does not depend on the requantiser: a first pool of trial gives it.
        free = Requant(low=(output.minimum,), high=(output.maximum,), zero=output.zero)

        def make(requant: Requant) -> AvgPool:
            return AvgPool(
                name=self.name("avg"),
                inputs=(name,),
                input=kind,
                geometry=g,
                count_include_pad=include,
                requant=requant,
                output=output,
            )

        self.ops.append(make(self.requant(make(free).accumulator_interval(), output)))

    def rescale(self) -> None:
        name, kind = self.last
        output = random_type(self.rng, kind.shape)
        low, high = kind.minimum - kind.zero, kind.maximum - kind.zero
        interval = np.full(kind.channels, low), np.full(kind.channels, high)
        self.ops.append(
            Rescale(
                name=self.name("rescale"),
                inputs=(name,),
                input=kind,
                requant=self.requant(interval, output),
                output=output,
            )
        )

    def flatten(self) -> None:
        name, kind = self.last
        output = self.like(kind, (kind.size,))
        self.ops.append(
            Flatten(name=self.name("flatten"), inputs=(name,), input=kind, output=output)
        )

    def join(self) -> None:
        """The last tensor and a rescaled copy of it, added or concatenated."""
        name, kind = self.last
        self.rescale()
        other, second = self.last
        if self.chance(0.5):
            output = random_type(self.rng, kind.shape)
            mult = self.number(-9, 9), self.number(1, 9)
            ends = [
                [m * (t.minimum - t.zero), m * (t.maximum - t.zero)]
                for m, t in zip(mult, (kind, second), strict=True)
            ]
            low, high = (sum(pick(e) for e in ends) for pick in (min, max))
            interval = np.full(kind.channels, low), np.full(kind.channels, high)
            self.ops.append(
                Add(
                    name=self.name("add"),
                    inputs=(name, other),
                    types=(kind, second),
                    mult=mult,
                    requant=self.requant(interval, output),
                    output=output,
                )
            )
            return
        join = self.like(second, kind.shape)
        low, high = kind.minimum - kind.zero, kind.maximum - kind.zero
        interval = np.full(kind.channels, low), np.full(kind.channels, high)
        copy = Rescale(
            name=self.name("rescale"),
            inputs=(name,),
            input=kind,
            requant=self.requant(interval, join),
            output=join,
        )
        self.ops.append(copy)
        both = self.like(second, (2 * kind.channels, *kind.shape[1:]))
        self.ops.append(
            Concat(
                name=self.name("concat"),
                inputs=(other, copy.name),
                types=(second, join),
                output=both,
            )
        )

    def global_pool(self) -> None:
        name, kind = self.last
        if self.chance(0.5):
            output = self.like(kind, (kind.channels,))
            self.ops.append(
                GlobalMaxPool(name=self.name("gmax"), inputs=(name,), input=kind, output=output)
            )
            return
        output = random_type(self.rng, (kind.channels,))
        low = kind.pixels * (kind.minimum - kind.zero)
        high = kind.pixels * (kind.maximum - kind.zero)
        interval = np.full(kind.channels, low), np.full(kind.channels, high)
        self.ops.append(
            GlobalAvgPool(
                name=self.name("gavg"),
                inputs=(name,),
                input=kind,
                requant=self.requant(interval, output),
                output=output,
            )
        )


def random_network(seed: int, *, hardware_only: bool = True, largest: int = 9) -> Network:
    """A small valid network.

    Parameters
    ----------
    seed : int
        Equal seeds give equal networks.
    hardware_only : bool
        Only what hardware is generated for: a chain of convolutions without groups, linear layers,
        max pools, uniform average pools and rescales, three roundings. Otherwise every layer and
        rounding.
    largest : int
        Largest height and width of an input image.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < 0.15:
        shape: tuple[int, ...] = (int(rng.integers(1, 13)),)
    else:
        shape = tuple(
            int(v) for v in (rng.integers(1, 6), *rng.integers(2, largest, 2, endpoint=True))
        )
    source = random_type(rng, shape)
    if rng.random() < 0.4:
        source = TensorType(shape=shape, width=8, signed=False)  # raw pixels
    b = _Builder(rng, source, hardware_only=hardware_only)
    if len(shape) == 3:
        image = [b.conv, b.conv, b.max_pool, b.avg_pool, b.rescale]
        if not hardware_only:
            image += [b.join, b.join]
        for _ in range(b.number(1, 4)):
            b.step(image[b.number(0, len(image) - 1)])
        if b.chance(0.25):
            b.step(b.conv)
        elif not hardware_only and b.chance(0.4):
            b.step(b.global_pool)
        else:
            b.step(b.flatten, 1)
    if len(b.last[1].shape) == 1:
        if b.chance(0.5):
            b.step(b.linear)
            if b.chance(0.3):
                b.step(b.rescale)
        if not hardware_only and b.chance(0.2):
            b.step(b.join)
        b.step(partial(b.linear, raw=0.7))
    return Network(name=f"random{seed}", input=source, ops=tuple(b.ops), output=b.ops[-1].name)
