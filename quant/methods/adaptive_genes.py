"""Genes of adaptive quantisation: from real numbers to the integer constants of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import Fixed
from hwgen.ir.ops.base import Codes
from quant import graph as fg
from quant.calibrate import LayerInputs
from quant.codebooks import (
    best_step,
    bin_means,
    bins_of,
    code_range,
    covering_step,
    integer_entries,
    kmeans_exact,
    lloyd_max,
    power_of_two_step,
    spread_levels,
    uniform_codes,
)
from quant.formats import Calibration, Floats, choose_format, decode, quantize_to
from quant.methods.adaptive_forward import Forward, one_thread
from quant.methods.adaptive_moments import LayerMoments, moments
from quant.plan import LayerPlan, Plan, tensor_scale

__all__ = ["Form", "Genome", "Start"]

EXACT_BITS = 6
"""Widest codes whose best bins come from exact k-means; those of wider ones from Lloyd-Max."""


SMALL = 5000
"""Weights of a layer that gets all rounds of the local search; larger ones get a quarter."""


class Form(Enum):
    """What evolves."""

    CLIP = "clip"
    """The bounds of each tensor; levels are uniform, what is stored is multiplied."""
    CODEBOOK = "codebook"
    """All boundaries between the bins of each tensor; what is stored is looked up."""


class Start(Enum):
    """Quantisers that a search starts from."""

    LINEAR = "linear"
    """Uniform over the range without saturation."""
    MSE = "mse"
    """Uniform, with the bounds of the least squared error of the weights."""
    OUTPUT = "output"
    """Uniform, with the bounds of the least squared error of the layer's outputs."""
    KMEANS = "kmeans"
    """Bins of the least squared error of the weights: exact k-means, Lloyd-Max above 6 bits."""
    WEIGHTED = "weighted"
    """The same, each weight's error counted by the variance of its input."""
    DESCENT = "descent"
    """What a local search on the squared error of each layer's outputs makes of the best of the
    others: rounded biases count, the layer's inputs are those of the float network."""
    LLOYD = "lloyd"
    """Bins of Lloyd-Max from levels that follow the weights' density."""


def uniform_step(node: fg.Conv | fg.Linear, bits: int, kind: Start, seen: LayerMoments) -> float:
    """The step of a layer's weights with a uniform quantiser."""
    low, high = code_range(bits)
    if kind is Start.LINEAR:
        return covering_step(node.weight, high)
    if kind is Start.MSE:
        return best_step(node.weight, low, high)

    def error(step: float) -> float:
        return seen.variance(uniform_codes(node.weight, step, low, high) * step - node.weight)

    return best_step(node.weight, low, high, error=error)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """Integer weights: codes, what a code of 1 stands for, the codes' width, the codebook if any."""

    codes: Codes
    step: float
    width: int
    codebook: tuple[int, ...] | None = None

    @property
    def weights(self) -> Floats:
        """What the codes stand for."""
        return np.asarray(self.codes * self.step, dtype=np.float64)


class Coder(Protocol):
    """Weights of one layer from genes.

    Attributes
    ----------
    BEST : tuple of Start
        What a local search starts from.
    ROUNDS : int
        Its steps in a small layer.
    """

    BEST: ClassVar[tuple[Start, ...]]
    ROUNDS: ClassVar[int]

    @property
    def size(self) -> int:
        """Number of genes."""

    def start(self, kind: Start) -> Floats:
        """Genes ``(size,)`` of a known quantiser."""

    def weights(self, genes: Floats) -> Coded:
        """The integer weights of genes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Bounds of a tensor of uniform levels, as three genes.

    They are: log2 of the step, relative to that of the range without saturation; what is added
    before rounding, in steps (both bounds move by it, exact zero stays a code); log2 of the gain,
    what a code stands for relative to the step. A unit of a gene is :attr:`UNITS` of these.
    """

    node: fg.Conv | fg.Linear
    bits: int
    seen: LayerMoments
    size: int = 3

    UNITS: ClassVar[Floats] = np.array([0.25, 0.125, 0.0625])
    BEST: ClassVar[tuple[Start, ...]] = (Start.OUTPUT, Start.MSE)
    ROUNDS: ClassVar[int] = 1200

    def start(self, kind: Start) -> Floats:
        step = uniform_step(self.node, self.bits, kind, self.seen)
        widest = covering_step(self.node.weight, code_range(self.bits)[1])
        genes: Floats = np.array([np.log2(step / widest), 0.0, 0.0]) / self.UNITS
        return genes

    def weights(self, genes: Floats) -> Coded:
        low, high = code_range(self.bits)
        log_step, offset, log_gain = (genes * self.UNITS).tolist()
        step = covering_step(self.node.weight, high) * 2.0**log_step
        codes = uniform_codes(self.node.weight + offset * step, step, low, high)
        return Coded(codes=codes, step=step * 2.0**log_gain, width=self.bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """All boundaries of a tensor's bins; a bin stands for the mean of its weights.

    A gene is a boundary, in units of the distance between the neighbouring levels of the best
    bins; genes in any order stand for the boundaries in rising order. Entries are integers of
    ``entry_bits`` bits of a power-of-two step, so that no multiplier is needed behind the
    accumulator; bins of the same entry and empty bins leave the codebook shorter. With as many
    bits for an entry as for a code there is nothing to look up: entries are stored.
    """

    node: fg.Conv | fg.Linear
    bits: int
    entry_bits: int
    fitted: bool
    seen: LayerMoments
    units: Floats = field(init=False, repr=False)
    step: float = field(init=False)
    _levels: Floats = field(init=False, repr=False)

    BEST: ClassVar[tuple[Start, ...]] = (Start.OUTPUT, Start.LLOYD, Start.KMEANS, Start.WEIGHTED)
    ROUNDS: ClassVar[int] = 480

    def __post_init__(self) -> None:
        weight = self.node.weight
        top = covering_step(weight, 1)
        levels = _full(best_bins(weight, 1 << self.bits), 1 << self.bits, top)
        object.__setattr__(self, "_levels", levels)
        gaps = np.maximum(np.diff(levels), top / (4 << self.bits))
        object.__setattr__(self, "units", gaps)
        # Entries are means, so that none is beyond the largest weight.
        step = power_of_two_step(covering_step(weight, code_range(self.entry_bits)[1]))
        object.__setattr__(self, "step", step)

    @property
    def size(self) -> int:
        return (1 << self.bits) - 1

    def start(self, kind: Start) -> Floats:
        weight, count = self.node.weight, 1 << self.bits
        top = covering_step(weight, 1)
        if kind is Start.KMEANS:
            levels = self._levels
        elif kind is Start.WEIGHTED:
            levels = _full(best_bins(weight, count, self.seen.importance), count, top)
        elif kind is Start.LLOYD:
            levels = _full(lloyd_max(weight, spread_levels(weight, count)).levels, count, top)
        else:
            low, high = code_range(self.bits)
            step = uniform_step(self.node, self.bits, kind, self.seen)
            # Ties go up in the uniform quantiser, as values on a boundary do here.
            return (np.arange(low, high) + 0.5) * step / self.units
        return (levels[1:] + levels[:-1]) / 2 / self.units

    def weights(self, genes: Floats) -> Coded:
        boundaries = np.sort(genes * self.units)
        bins = bins_of(self.node.weight, boundaries)
        levels = bin_means(self.node.weight, bins, 1 << self.bits)
        if self.fitted:
            levels = self.seen.fit_levels(self.node.weight, bins, levels)
        codes = integer_entries(levels, self.step, self.entry_bits)[bins]
        codebook = None
        if self.entry_bits > self.bits:
            codebook = tuple(np.unique(codes).tolist())
        return Coded(codes=codes, step=self.step, width=self.entry_bits, codebook=codebook)


def best_bins(values: Floats, count: int, weights: Floats | None = None) -> Floats:
    """Levels of the least (weighted) squared error, ``(at most count,)``."""
    if count <= 1 << EXACT_BITS:
        return kmeans_exact(values, count, weights=weights).levels
    return lloyd_max(values, spread_levels(values, count), weights=weights).levels


def _full(levels: Floats, count: int, top: float) -> Floats:
    """``count`` levels: what is missing lies above the largest weight, where bins are empty."""
    missing = count - len(levels)
    return np.concatenate([levels, top * (2 + np.arange(missing))])


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One layer's genes: its coder's, and one for the biases.

    The last gene is log2 of the step of the biases, in halves, relative to the power of two with
    the least squared error; rounded, because steps are powers of two.
    """

    coder: Coder
    node: fg.Conv | fg.Linear
    seen: LayerMoments
    bits: int
    source_frac: int

    @property
    def size(self) -> int:
        return self.coder.size + 1

    def bias_form(self, values: Floats, coded: Coded, calibration: Calibration) -> Fixed:
        """The format of biases in units of the accumulator's step."""
        return choose_format(
            values / self.unit(coded),
            width=self.bits,
            signed=True,
            calibration=calibration,
            what=f"the biases of layer {self.node.name}",
            finest=0,
        )

    def unit(self, coded: Coded) -> float:
        """What 1 in the accumulator stands for."""
        return float(np.ldexp(coded.step, -self.source_frac))

    def shifted(self, values: Floats, coded: Coded, gene: float) -> Fixed:
        """The format of biases that a gene stands for."""
        best = self.bias_form(values, coded, Calibration.MSE)
        return replace(best, frac=min(0, best.frac - int(np.floor(gene / 2 + 0.5))))

    def error(self, genes: Floats) -> float:
        """Squared error of the outputs, the mean over positions summed over channels."""
        coded = self.coder.weights(genes[:-1])
        change, unit = coded.weights - self.node.weight, self.unit(coded)
        values = self.node.bias - self.seen.mean_output(change)
        form = self.shifted(values, coded, float(genes[-1]))
        missed = decode(quantize_to(values / unit, form), form) * unit - values
        return self.seen.variance(change) + float(np.vdot(missed, missed))

    def descend(self) -> Floats:
        """Genes of a smaller :meth:`error` than those of known quantisers, by a (1 + 1) strategy."""
        rng = np.random.default_rng(0)
        starts = [np.append(self.coder.start(kind), 0.0) for kind in self.coder.BEST]
        best = min(starts, key=self.error)
        least, step = self.error(best), 0.2
        rounds = self.coder.ROUNDS
        for _ in range(rounds if self.node.weight.size <= SMALL else rounds // 4):
            genes = best + step * rng.standard_normal(len(best))
            error = self.error(genes)
            better = error < least
            if better:
                best, least = genes, error
            step = min(1.0, 1.5 * step) if better else max(0.02, 0.93 * step)
        return best


@dataclass(frozen=True, kw_only=True, eq=False)
class Genome:
    """The genes of all layers, one array.

    Parameters
    ----------
    layers : mapping of str to Layer
    forward : Forward
    outputs : mapping of str to Fixed
        Formats of the activations: see :class:`quant.plan.Plan`.
    correct : bool
        Whether biases make up for the mean errors of the layers so far.
    """

    layers: Mapping[str, Layer]
    forward: Forward
    outputs: Mapping[str, Fixed]
    correct: bool

    @property
    def sets(self) -> NDArray[np.int64]:
        """The set of each gene, ``(n,)``: a layer's weights are one, its biases another."""
        parts = []
        for place, layer in enumerate(self.layers.values()):
            parts += [2 * place] * layer.coder.size + [2 * place + 1]
        return np.array(parts, dtype=np.int64)

    @one_thread()
    def start(self, kind: Start) -> Floats:
        """Genes ``(n,)`` of a known quantiser in every layer, biases treated like weights."""
        if kind is Start.DESCENT:
            return np.concatenate([layer.descend() for layer in self.layers.values()])
        genes = {name: layer.coder.start(kind) for name, layer in self.layers.items()}
        coded = {name: self.layers[name].coder.weights(part) for name, part in genes.items()}
        bias = dict.fromkeys(genes, 0.0)

        def form(name: str, values: Floats) -> Fixed:
            best = self.layers[name].bias_form(values, coded[name], Calibration.MSE)
            if kind is not Start.LINEAR:
                return best
            widest = self.layers[name].bias_form(values, coded[name], Calibration.MAX)
            bias[name] = 2.0 * (best.frac - widest.frac)
            return widest

        self._plan(coded, form)
        return np.concatenate([np.append(part, bias[name]) for name, part in genes.items()])

    @one_thread()
    def plan(self, genes: Floats) -> Plan:
        """What genes ``(n,)`` stand for."""
        coded, last, begin = {}, {}, 0
        for name, layer in self.layers.items():
            part = genes[begin : begin + layer.size]
            coded[name], last[name] = layer.coder.weights(part[:-1]), float(part[-1])
            begin += layer.size

        def form(name: str, values: Floats) -> Fixed:
            return self.layers[name].shifted(values, coded[name], last[name])

        return self._plan(coded, form)

    def _plan(self, coded: Mapping[str, Coded], form_of: Callable[[str, Floats], Fixed]) -> Plan:
        """The plan of weights, its biases in formats that ``form_of`` gives of their values."""
        plans: dict[str, LayerPlan] = {}

        def bias_of(name: str, wanted: Floats) -> Floats:
            layer, part = self.layers[name], coded[name]
            values = wanted if self.correct else layer.node.bias
            unit, step, rounded = layer.unit(part), None, values
            if values.any():
                form = form_of(name, values)
                step = unit * form.scale
                rounded = decode(quantize_to(values / unit, form), form) * unit
            plans[name] = LayerPlan(
                codes=part.codes,
                width=part.width,
                scale=tensor_scale(part.step),
                bias=values,
                bias_width=layer.bits,
                bias_step=step,
                codebook=part.codebook,
            )
            return rounded

        self.forward.correct({name: part.weights for name, part in coded.items()}, bias_of)
        return Plan(layers=plans, outputs=self.outputs)

    @classmethod
    def of(
        cls,
        forward: Forward,
        sources: Mapping[str, Fixed],
        inputs: Mapping[str, LayerInputs],
        *,
        form: Form,
        bits: int,
        entry_bits: int,
        correct: bool,
        fitted: bool,
    ) -> Genome:
        """The genome of a network.

        Parameters
        ----------
        forward : Forward
            With the formats of the activations, which stay.
        sources : mapping of str to Fixed
            Format of each layer's input.
        inputs : mapping of str to LayerInputs
            What calibration saw of each layer's input.
        form : Form
        bits, entry_bits : int
        correct : bool
            Whether biases make up for the mean error of the weights.
        fitted : bool
            Whether levels of codebooks are fitted to the layer's outputs; else they are means.
        """
        layers = {}
        for name, seen_inputs in inputs.items():
            node, seen = seen_inputs.node, moments(seen_inputs)
            coder: Coder = (
                Clip(node=node, bits=bits, seen=seen)
                if form is Form.CLIP
                else Codebook(node=node, bits=bits, entry_bits=entry_bits, fitted=fitted, seen=seen)
            )
            layers[name] = Layer(
                coder=coder, node=node, seen=seen, bits=bits, source_frac=sources[name].frac
            )
        return cls(layers=layers, forward=forward, outputs=forward.outputs, correct=correct)
