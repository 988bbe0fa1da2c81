"""Weights rounded so that later ones make up for earlier ones' errors, layer after layer.

For each layer the real weights are first fitted to the inputs that it gets in the quantised network
(least squares against what the float layer gives on float inputs), then rounded one input at a time,
each rounding error spread over the inputs still to come (optimal brain quantisation as in GPTQ, Frantar
et al., arXiv 2210.17323), then improved by coordinate descent. The bias makes up for the mean error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from hwgen.ir import Fixed
from quant import graph as fg
from quant.assemble import Assembler
from quant.formats import Floats
from quant.grouping import Group
from quant.methods.layerwise_grids import Norm
from quant.plan import LayerPlan, Plan
from quant.straight import round_to_fixed

__all__ = ["Calibrator", "RoundingProblem"]

ROWS = 8_000
"""About as many output positions of a layer are looked at."""

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a fraction of its mean."""

SWEEPS = 2
"""Rounds of coordinate descent."""

BATCH = 100

SHRINK = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36)
"""Ranges that are tried for a real scale, as parts of the one without saturation."""

NEARBY = (0.9, 1.1, 0.95, 1.05, 0.8, 1.2)
"""What a real scale is multiplied by in turn, where compensated rounding errs less with it."""

REFITS = 2
"""Times that the real scale of a channel is fitted to its codes, and its codes improved for that."""

HALVINGS = 4
"""Ranges that are tried for a scale that is a power of two."""


@dataclass(kw_only=True, eq=False)
class RoundingProblem:
    """What a layer's weights should do on the inputs that it gets.

    Parameters
    ----------
    shape : tuple of int
        Of the layer's weight.
    moments : list of float64 arrays
        Centred second moments of the inputs ``(taps, taps)`` of each group, damped.
    target : float64 array
        The real weights that fit best, ``(out, taps)``.
    mean_input : float64 array
        ``(groups, taps)``.
    mean_output : float64 array
        What each channel should give on average, bias included, ``(out,)``.
    per_channel, power_of_two : bool
        Which scales the layer may have.
    offset : float64 array, optional
        The plan's, of the batch norm behind the layer.
    """

    shape: tuple[int, ...]
    moments: list[Floats] = field(repr=False)
    target: Floats = field(repr=False)
    mean_input: Floats = field(repr=False)
    mean_output: Floats = field(repr=False)
    per_channel: bool
    power_of_two: bool
    offset: Floats | None = field(default=None, repr=False)
    _solved: dict[tuple[int, int], LayerPlan] = field(default_factory=dict, repr=False)
    _factors: dict[int, tuple[NDArray[np.intp], Floats]] = field(default_factory=dict, repr=False)

    def solve(self, width: int, bias_width: int) -> LayerPlan:
        """The layer's constants with weights of so many bits; the same object for the same widths."""
        key = (width, bias_width)
        if key not in self._solved:
            self._solved[key] = self._solve(width, bias_width)
        return self._solved[key]

    def _solve(self, width: int, bias_width: int) -> LayerPlan:
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        scale = self._scales(low, high)
        codes, errors = self._rounded(scale, low, high)
        for factor in () if self.power_of_two else NEARBY:
            other = scale * factor
            found, new = self._rounded(other, low, high)
            better = (
                new < errors if self.per_channel else np.full(len(new), new.sum() < errors.sum())
            )
            codes[better], errors[better] = found[better], new[better]
            scale = np.where(better, other, scale)
        if self.per_channel and not self.power_of_two:
            self._refit(codes, scale, low, high)
        means = np.empty(len(self.target))
        for index, part in enumerate(self._parts()):
            means[part] = (codes[part] * scale[part, None]) @ self.mean_input[index]
        shared = scale if self.per_channel else scale[:1]
        return LayerPlan(
            codes=codes.astype(np.int64).reshape(self.shape),
            width=width,
            scale=shared,
            bias=self.mean_output - means,
            bias_width=bias_width,
            offset=self.offset,
        )

    def _scales(self, low: int, high: int) -> Floats:
        """The scale of each channel with the least error of plain rounding."""
        top = np.maximum(self.target.max(1) / (high + 0.5), self.target.min(1) / (low - 0.5))
        if not self.per_channel:
            top = np.full_like(top, top.max())
        top = np.maximum(top, 1e-12)
        if self.power_of_two:
            top = 2.0 ** np.ceil(np.log2(top))
            choices = [top * 2.0**-k for k in range(HALVINGS)]
        else:
            choices = [top * part for part in SHRINK]
        errors = np.stack([self._errors(scale, low, high) for scale in choices])
        if not self.per_channel:
            errors = np.repeat(errors.sum(1, keepdims=True), len(top), axis=1)
        best = errors.argmin(0)
        return np.asarray(np.stack(choices)[best, np.arange(len(top))])

    def _rounded(self, scale: Floats, low: int, high: int) -> tuple[Floats, Floats]:
        """Codes ``(out, taps)`` of channels with these scales, and their errors ``(out,)``."""
        codes = np.empty_like(self.target)
        for index, (part, moments) in enumerate(zip(self._parts(), self.moments, strict=True)):
            if index not in self._factors:
                self._factors[index] = _order(moments)
            factors = self._factors[index]
            codes[part] = _round(self.target[part], scale[part], moments, factors, low, high)
        return codes, self._squares(codes * scale[:, None])

    def _refit(self, codes: Floats, scale: Floats, low: int, high: int) -> None:
        """Fit each channel's scale to its codes and its codes to that scale, in place.

        Neither adds to the squared error.
        """
        for _ in range(REFITS):
            for index, part in enumerate(self._parts()):
                moments, target, mine = self.moments[index], self.target[part], codes[part]
                weighted = mine @ moments
                norm = (weighted * mine).sum(1)
                best = (weighted * target).sum(1) / np.where(norm > 0, norm, 1.0)
                scale[part] = np.where(best > 0, best, scale[part])
                order = self._factors[index][0]
                codes[part] = _descend(mine, target, scale[part], moments, order, low, high)

    def _parts(self) -> list[slice]:
        """The channels of each group."""
        per = len(self.target) // len(self.moments)
        return [slice(index * per, (index + 1) * per) for index in range(len(self.moments))]

    def _errors(self, scale: Floats, low: int, high: int) -> Floats:
        """Squared error of plain rounding, ``(out,)``."""
        codes = np.clip(np.rint(self.target / scale[:, None]), low, high)
        return self._squares(codes * scale[:, None])

    def _squares(self, weights: Floats) -> Floats:
        """Squared error that weights ``(out, taps)`` make in each channel, ``(out,)``."""
        error = self.target - weights
        parts = zip(self._parts(), self.moments, strict=True)
        return np.concatenate([((error[part] @ m) * error[part]).sum(1) for part, m in parts])


def _order(moments: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The order in which inputs are rounded, and how the error of each is spread over the next ones:
    the upper Cholesky factor of the inverse of their moments."""
    order = np.argsort(-np.diag(moments), kind="stable")
    inverse = np.linalg.inv(moments[np.ix_(order, order)])
    return order, np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, dtype=np.float64)


def _round(
    target: Floats,
    scale: Floats,
    moments: Floats,
    factors: tuple[NDArray[np.intp], Floats],
    low: int,
    high: int,
) -> Floats:
    """Codes ``(out, taps)`` of a group of channels."""
    order, upper = factors
    rest = target[:, order].copy()
    codes = np.empty_like(rest)
    for tap in range(rest.shape[1]):
        codes[:, tap] = np.clip(np.rint(rest[:, tap] / scale), low, high)
        error = (rest[:, tap] - codes[:, tap] * scale) / upper[tap, tap]
        rest[:, tap + 1 :] -= np.outer(error, upper[tap, tap + 1 :])
    back = np.empty_like(codes)
    back[:, order] = codes
    return _descend(back, target, scale, moments, order, low, high)


def _descend(
    codes: Floats,
    target: Floats,
    scale: Floats,
    moments: Floats,
    order: NDArray[np.intp],
    low: int,
    high: int,
) -> Floats:
    """Codes ``(out, taps)`` improved one input at a time."""
    back = codes.copy()
    pull = (target - back * scale[:, None]) @ moments  # minus half the gradient
    for tap in np.tile(order, SWEEPS):
        wanted = back[:, tap] + pull[:, tap] / (moments[tap, tap] * scale)
        new = np.clip(np.rint(wanted), low, high)
        change = (new - back[:, tap]) * scale
        if change.any():
            pull -= np.outer(change, moments[tap])
            back[:, tap] = new
    return back


class Calibrator:
    """Fits a network's weights to formats, from the first layer to the last.

    Parameters
    ----------
    assembler : Assembler
    images : uint8 array
        ``(N, C, H, W)``.
    seed : int
        Chooses the positions that are looked at.
    multipliers : bool
        Whether scales of weights are real numbers also where no batch norm brings multipliers.
    norms : mapping of str to Norm
        Layers whose batch norms' offsets go by their formats.
    """

    def __init__(
        self,
        assembler: Assembler,
        images: NDArray[np.uint8],
        seed: int,
        *,
        multipliers: bool,
        norms: Mapping[str, Norm] | None = None,
    ) -> None:
        self.assembler, self.graph = assembler, assembler.graph
        self.images, self.multipliers = torch.tensor(images), multipliers
        self.norms = dict(norms or {})
        generator = np.random.default_rng(seed)
        self._places: dict[str, NDArray[np.intp]] = {}
        for node in self.graph.mac_nodes:
            pixels = int(np.prod(self.graph.shape(node.name)[1:]))
            count = min(pixels, -(-ROWS // len(images)))
            self._places[node.name] = np.sort(generator.permutation(pixels)[:count])
        self._rows = self._float_rows()

    def _float_rows(self) -> dict[str, Tensor]:
        """Inputs of each layer in the float network, ``(rows, groups, taps)``."""
        parts: dict[str, list[Tensor]] = {node.name: [] for node in self.graph.mac_nodes}
        batches = self.graph.activations(self.images, dtype=torch.float32, batch_size=BATCH)
        for values in batches:
            for node in self.graph.mac_nodes:
                parts[node.name].append(self._columns(node, values[node.inputs[0]]))
        return {name: torch.cat(part) for name, part in parts.items()}

    def _columns(self, node: fg.Conv | fg.Linear, x: Tensor) -> Tensor:
        """The inputs of the chosen positions, ``(n * positions, groups, taps)``."""
        if isinstance(node, fg.Linear):
            return x[:, None, :]
        top, left, bottom, right = node.padding
        padded = F.pad(x, (left, right, top, bottom))
        rows, columns = node.weight.shape[2:]
        view = padded.unfold(2, rows, node.stride[0]).unfold(3, columns, node.stride[1])
        places = self._places[node.name]
        width = view.shape[3]
        taken = view[:, :, places // width, places % width]  # (n, C, positions, rows, columns)
        per = taken.shape[1] // node.groups
        shape = (len(x), node.groups, per, len(places), rows, columns)
        rows_first = taken.reshape(shape).permute(0, 3, 1, 2, 4, 5)
        return rows_first.reshape(len(x) * len(places), node.groups, -1)

    def problem(self, group: Group, x: Tensor) -> RoundingProblem:
        """What a layer should do on inputs ``(N, *shape)`` of the quantised network."""
        node = group.node
        assert isinstance(node, fg.Conv | fg.Linear)
        wanted, given = self._rows[node.name], self._columns(node, x)
        out = len(node.bias)
        per = out // wanted.shape[1]
        weight = node.weight.reshape(out, -1)
        moments, targets, means, outputs = [], [], [], []
        for index in range(wanted.shape[1]):
            want, have = wanted[:, index], given[:, index]
            part = weight[index * per : (index + 1) * per]
            mean_want, mean_have = want.mean(0), have.mean(0)
            have = have - mean_have
            second = (have.T @ have).double().numpy() / len(have)
            damping = DAMPING * max(float(np.diag(second).mean()), 1e-12)
            second[np.diag_indices_from(second)] += damping
            cross = (have.T @ (want - mean_want)).double().numpy() / len(have)
            fit = np.linalg.solve(second, cross @ part.T + damping * part.T).T
            moments.append(second)
            targets.append(fit)
            means.append(mean_have.double().numpy())
            outputs.append(part @ mean_want.double().numpy())
        last = self.assembler.hands_out_accumulators(group)
        return RoundingProblem(
            shape=node.weight.shape,
            moments=moments,
            target=np.concatenate(targets),
            mean_input=np.stack(means),
            mean_output=np.concatenate(outputs) + node.bias,
            per_channel=not last,
            power_of_two=last or (group.affine is None and not self.multipliers),
        )

    def fit(
        self,
        widths: Mapping[str, int],
        outputs: Mapping[str, Fixed],
        bias_width: int,
    ) -> tuple[Plan, dict[str, RoundingProblem]]:
        """Weights for formats.

        Parameters
        ----------
        widths : mapping of str to int
            Bits of the weights by layer.
        outputs : mapping of str to Fixed
            As :class:`.Plan` has them.
        bias_width : int

        Returns
        -------
        Plan
        dict of str to RoundingProblem
            By layer: gives the same layer at other widths.
        """
        problems: dict[str, RoundingProblem] = {}

        def solve(group: Group, problem: RoundingProblem) -> LayerPlan:
            name = group.node.name
            problem.offset, problems[name] = self._offset(group, outputs), problem
            return problem.solve(widths[name], bias_width)

        return Plan(layers=self.walk(outputs, solve), outputs=dict(outputs)), problems

    def walk(
        self,
        outputs: Mapping[str, Fixed],
        solve: Callable[[Group, RoundingProblem], LayerPlan],
    ) -> dict[str, LayerPlan]:
        """Constants of each layer from the inputs that those before it leave to it.

        Parameters
        ----------
        outputs : mapping of str to Fixed
            As :class:`.Plan` has them.
        solve : callable
            Called from the first layer to the last.
        """
        values: dict[str, Tensor] = {fg.INPUT: self.images.to(torch.float32)}
        groups = self.assembler.groups
        last = {name: index for index, group in enumerate(groups) for name in group.node.inputs}
        layers = {}
        with torch.no_grad():
            for index, group in enumerate(groups):
                node = group.node
                inputs = [values[name] for name in node.inputs]
                if isinstance(node, fg.Conv | fg.Linear):
                    plan = layers[node.name] = solve(group, self.problem(group, inputs[0]))
                    made = _evaluate(node, plan, inputs[0])
                else:
                    made = node.evaluate(*inputs)
                values[group.last.name] = self._output(group, made, outputs)
                for name in node.inputs:
                    if last[name] == index:
                        values.pop(name, None)
        return layers

    def _output(self, group: Group, made: Tensor, outputs: Mapping[str, Fixed]) -> Tensor:
        """A group's tensor in its format."""
        if group.relu is not None and group.relu is not group.node:
            made = group.relu.evaluate(made)
        if group.affine is not None:
            affine, offset = group.affine, self._offset(group, outputs)
            made = (affine if offset is None else replace(affine, offset=offset)).evaluate(made)
        form = outputs.get(group.node.name)
        if form is None or group.keeps_format:
            return made
        return round_to_fixed(made, form)

    def _offset(self, group: Group, outputs: Mapping[str, Fixed]) -> Floats | None:
        norm = self.norms.get(group.node.name)
        return None if norm is None else norm.offset(outputs[group.node.name])


def _evaluate(node: fg.Conv | fg.Linear, plan: LayerPlan, x: Tensor) -> Tensor:
    """A layer with the plan's weights, in float32."""
    weight = torch.tensor(plan.weights, dtype=torch.float32)
    bias = torch.tensor(plan.bias, dtype=torch.float32)
    if isinstance(node, fg.Linear):
        return F.linear(x, weight, bias)
    top, left, bottom, right = node.padding
    parts = [
        F.conv2d(
            F.pad(part, (left, right, top, bottom)), weight, bias, node.stride, 0, 1, node.groups
        )
        for part in torch.split(x, BATCH)
    ]
    return torch.cat(parts)
