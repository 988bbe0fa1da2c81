"""Genes of adaptive quantisation: from real numbers to the integer constants of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import Fixed
from quant import graph as fg
from quant.calibrate import LayerInputs
from quant.formats import Calibration, Floats, choose_format, decode, quantize_to
from quant.methods.adaptive_coders import DIRECTIONS, Clip, Codebook, Coded, Coder, Form, Start
from quant.methods.adaptive_forward import Forward, one_thread
from quant.methods.adaptive_moments import LayerMoments, moments
from quant.plan import LayerPlan, Plan, tensor_scale

__all__ = ["Genome", "Layer"]

BIAS_UNIT = 4.0
"""Doublings of the biases' step that a unit of its gene stands for."""

REMEMBERED = 64
"""Integer weights that a layer remembers: offspring take most layers from their parents."""

SMALL = 5000
"""Weights of a layer that gets all rounds of the local search; larger ones get a quarter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One layer's genes: its coder's, and one for the biases.

    The last gene is log2 of the step of the biases, in units of 4, relative to the power of two with
    the least squared error; rounded, because steps are powers of two. In smaller units the changes
    that suit the other genes would never change it.
    """

    coder: Coder
    node: fg.Conv | fg.Linear
    seen: LayerMoments
    bits: int
    source_frac: int
    _known: dict[bytes, Coded] = field(init=False, repr=False, default_factory=dict)

    @property
    def size(self) -> int:
        return self.coder.size + 1

    def weights(self, genes: Floats) -> Coded:
        """The integer weights of the coder's genes."""
        key = genes.tobytes()
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[key] = self.coder.weights(genes)
        return found

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
        return replace(best, frac=min(0, best.frac - int(np.floor(gene * BIAS_UNIT + 0.5))))

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
        spread = np.append(np.ones(self.coder.size), 0.5 / BIAS_UNIT)  # most keep the biases' step
        rounds = self.coder.ROUNDS
        for _ in range(rounds if self.node.weight.size <= SMALL else rounds // 4):
            genes = best + step * spread * rng.standard_normal(len(best))
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
        """The set of each gene, ``(n,)``: one for each layer."""
        sizes = [layer.size for layer in self.layers.values()]
        return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)

    @property
    def directions(self) -> Floats:
        """Changes of all genes of a set together, ``(DIRECTIONS, n)``: none of biases."""
        bias = np.zeros((DIRECTIONS, 1))
        parts = [part for layer in self.layers.values() for part in (layer.coder.directions, bias)]
        return np.concatenate(parts, axis=1)

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
            bias[name] = (best.frac - widest.frac) / BIAS_UNIT
            return widest

        self._plan(coded, form)
        return np.concatenate([np.append(part, bias[name]) for name, part in genes.items()])

    @one_thread()
    def plan(self, genes: Floats) -> Plan:
        """What genes ``(n,)`` stand for."""
        coded, last, begin = {}, {}, 0
        for name, layer in self.layers.items():
            part = genes[begin : begin + layer.size]
            coded[name], last[name] = layer.weights(part[:-1]), float(part[-1])
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
