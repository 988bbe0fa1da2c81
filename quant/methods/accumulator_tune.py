"""Fine-tuning under the bound: weights are projected and rounded in every forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwgen.ir import Fixed
from hwgen.ir.formats import signed_width
from quant import graph as fg
from quant.methods.accumulator_bounds import Bound
from quant.methods.accumulator_design import Designer
from quant.methods.accumulator_fit import BIAS_BITS, Limits, bias_unit
from quant.methods.accumulator_project import HALVINGS, Real, shrink_round
from quant.methods.accumulator_setting import Setting
from quant.plan import LayerPlan, Plan
from quant.straight import TensorMap, fixed_ste

__all__ = ["Tuning", "prepare", "tuned_plan"]

KEEP = 0.45
"""Share of a step by which real weights differ from their integers at most when training starts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuning:
    """What fine-tuning starts from.

    Parameters
    ----------
    graph : FloatGraph
        In the units of the setting.
    weights, biases, outputs : mapping of str to callable
        See :func:`quant.finetune.finetune`.
    """

    graph: fg.FloatGraph
    weights: dict[str, TensorMap]
    biases: dict[str, TensorMap]
    outputs: dict[str, TensorMap]


class _Straight(torch.autograd.Function):
    """Some function in the forward pass, the identity in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _LayerMaps:
    """Maps of one layer; the weights' budgets are those that the last biases left."""

    def __init__(self, layer: LayerPlan, form: Fixed, limits: Limits) -> None:
        self.limits = limits
        self.scale = torch.tensor(layer.scale, dtype=torch.float32).reshape(-1, 1)
        self.step = torch.tensor(layer.scale * form.scale, dtype=torch.float32)
        self.bias = torch.tensor(np.round(layer.bias / (layer.scale * form.scale)))

    def weights(self, x: Tensor) -> Tensor:
        """Projected, rounded weights."""
        with torch.no_grad():
            codes = self._rounded(x.flatten(1) / self.scale)
            value = (codes * self.scale).reshape(x.shape)
        found: Tensor = _Straight.apply(x, value)  # type: ignore[no-untyped-call]
        return found

    def _rounded(self, values: Tensor) -> Tensor:
        limits = self.limits
        positive, negative, joint = limits.budgets(self.bias.numpy())
        if joint:
            far = min(-limits.low, limits.high)
            return values.sign() * _shrunk(values.abs().clamp(max=far), positive)
        plus = _shrunk(values.clamp(0, limits.high), positive)
        return plus - _shrunk((-values).clamp(0, -limits.low), negative)

    def biases(self, x: Tensor) -> Tensor:
        """Integer biases."""
        with torch.no_grad():
            bias = self.limits.clip_bias((x / self.step).double().numpy())
            self.bias = torch.from_numpy(bias)
            value = self.bias.float() * self.step
        found: Tensor = _Straight.apply(x, value)  # type: ignore[no-untyped-call]
        return found


def _shrunk(values: Tensor, budget: Real) -> Tensor:
    """See :func:`quant.methods.accumulator_project.shrink_round`."""
    rounded = (values + 0.5).floor()
    limit = torch.tensor(budget, dtype=torch.float32)
    over = rounded.sum(1) > limit
    if bool(over.any()):
        part, most = values[over], limit[over]
        low, high = torch.zeros(len(part)), part.amax(1) + 0.5
        for _ in range(HALVINGS - 8):
            middle = (low + high) / 2
            fits = (part - middle[:, None] + 0.5).clamp_(min=0).floor_().sum(1) <= most
            low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
        rounded[over] = (part - high[:, None] + 0.5).clamp_(min=0).floor_()
    return rounded


def _limits(designer: Designer, layer: LayerPlan, form: Fixed) -> Limits:
    """Limits of a layer; outside the weights' bound also those of its width."""
    rules = designer.rules
    bits = rules.widest if rules.bound is Bound.WEIGHTS else layer.width
    limits = rules.limits(form, layer.codes[0].size, bits)
    return replace(limits, bias_unit=bias_unit(layer.bias / (layer.scale * form.scale)))


def prepare(designer: Designer, setting: Setting, plan: Plan) -> Tuning:
    """Maps, and a graph that computes at first what the plan does."""
    changed: dict[str, fg.Node] = {}
    weights: dict[str, TensorMap] = {}
    biases: dict[str, TensorMap] = {}
    for node in designer.graph.mac_nodes:
        layer = plan.layer(node.name)
        source, out = designer.source(node, setting), designer.out_unit(node, setting)
        unit = source.unit / source.form.scale
        groups = getattr(node, "groups", 1)
        flat = node.weight.reshape(groups, -1, node.weight[0].size) / out.reshape(groups, -1, 1)
        real = (flat * unit.reshape(groups, 1, -1)).reshape(node.weight.shape)
        reach = KEEP * layer.scale.reshape(-1, *[1] * (real.ndim - 1))
        near = layer.weights + np.clip(real - layer.weights, -reach, reach)
        changed[node.name] = replace(node, weight=near, bias=layer.bias)
        maps = _LayerMaps(layer, source.form, _limits(designer, layer, source.form))
        weights[node.name], biases[node.name] = maps.weights, maps.biases
    nodes = tuple(changed.get(node.name, node) for node in designer.graph.nodes)
    outputs = {
        name: fixed_ste(designer.form(designer.assembler.joint[name], setting))
        for name in designer.makers
    }
    return Tuning(
        graph=replace(designer.graph, nodes=nodes),
        weights=weights,
        biases=biases,
        outputs=outputs,
    )


def tuned_plan(designer: Designer, setting: Setting, plan: Plan, trained: fg.FloatGraph) -> Plan:
    """The plan of fine-tuned weights, projected and rounded exactly."""
    layers = {}
    for node in trained.mac_nodes:
        old = plan.layer(node.name)
        form = designer.source(designer.graph.node(node.name), setting).form  # type: ignore[arg-type]
        limits = _limits(designer, old, form)
        step = old.scale * form.scale
        bias = limits.clip_bias(node.bias / step)
        positive, negative, joint = limits.budgets(bias)
        flat = (node.weight / old.scale.reshape(-1, *[1] * (node.weight.ndim - 1))).reshape(
            len(node.weight), -1
        )
        codes = shrink_round(
            flat, positive, negative, low=limits.low, high=limits.high, joint=joint
        ).astype(np.int64)
        layers[node.name] = LayerPlan(
            codes=codes.reshape(node.weight.shape),
            width=signed_width(min(int(codes.min()), 0), max(int(codes.max()), 0)),
            scale=old.scale,
            bias=bias * step,
            bias_width=min(BIAS_BITS, designer.rules.bits),
        )
    return replace(plan, layers=layers)
