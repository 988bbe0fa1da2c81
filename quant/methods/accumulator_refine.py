"""Fitting layers again, from the first to the last, to the inputs of the integer network."""

from __future__ import annotations

import numpy as np
import torch

from hwgen.ir import INPUT
from hwgen.ir.executor import Executor
from quant import graph as fg
from quant.formats import Floats
from quant.methods.accumulator_design import Designer
from quant.methods.accumulator_samples import layer_taps
from quant.methods.accumulator_setting import Setting
from quant.plan import Plan

__all__ = ["refined"]


def refined(designer: Designer, setting: Setting, plan: Plan) -> Plan:
    """The plan with every layer's weights fitted to what the layers before it make of the images.

    A layer then makes up for the errors of those before it, as far as they are linear.

    Parameters
    ----------
    designer : Designer
    setting : Setting
        Of ``plan``; widths and ranges stay.
    plan : Plan
    """
    for node in designer.graph.mac_nodes:
        if node.inputs[0] == INPUT:
            continue  # pixels are what they are
        source, out = designer.source(node, setting), designer.out_unit(node, setting)
        layer = designer.fit(node, source, out, _codes(designer, node, plan))
        plan = plan.with_layers(**{node.name: layer})
    return plan


def _codes(designer: Designer, node: fg.Conv | fg.Linear, plan: Plan) -> Floats:
    """Input codes of the integer network at the windows that the samples hold."""
    network = designer.assembler.assemble(plan)
    place = next(i for i, op in enumerate(network.ops) if op.name == node.name)
    wanted = network.ops[place].inputs[0]
    needed, ops = {wanted}, []
    for op in reversed(network.ops[:place]):
        if op.name in needed:
            ops.append(op)
            needed |= set(op.inputs)
    executor = Executor({INPUT: network.input}, tuple(reversed(ops)), (wanted,))
    codes = executor.evaluate(designer.samples.images)
    tensor = torch.from_numpy(codes.astype(np.float32))
    return layer_taps(node, tensor, designer.samples.places[node.name])
