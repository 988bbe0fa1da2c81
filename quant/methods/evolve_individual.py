"""One individual of the search: from genes to a trained integer network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import INPUT, Network
from quant import graph as fg
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph
from quant.config import LayerBits, QuantConfig
from quant.expand import resize
from quant.finetune import FineTuner, FinetuneRecipe
from quant.judge import Judge, Score
from quant.methods.evolve_grids import ActivationGrid, BiasCorrection, WeightGrid
from quant.plan import LayerPlan, Plan

__all__ = ["Diverged", "Genes", "Individual", "LayerGenes", "Trainer", "train_individual"]


class Diverged(BadInput):
    """Fine-tuning ended in numbers that are not finite."""


CALIBRATION_IMAGES = 100
"""Search images that choose the formats to start training with."""

SETTLED = 0.75
"""Share of the steps after which formats stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGenes:
    """Genes of a layer.

    Parameters
    ----------
    weights, activations : int
        Widths in bits; ``activations`` is that of the layer's output.
    factor : float
        Its channels over those of the trained network's layer.
    """

    weights: int
    activations: int
    factor: float = 1.0


Genes = Mapping[str, LayerGenes]
"""By layer name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Individual:
    """A network of the population.

    Parameters
    ----------
    genes : mapping of str to LayerGenes
    network : Network
    plan : Plan
        What it was assembled from.
    graph : FloatGraph
        The float network of raw pixels that was trained for it.
    score : Score
        On the search set.
    """

    genes: Genes
    network: Network = field(repr=False)
    plan: Plan = field(repr=False)
    graph: fg.FloatGraph = field(repr=False)
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trainer:
    """What all individuals share.

    Parameters
    ----------
    graph : FloatGraph
        The trained network of raw pixels.
    images, labels
        For training: ``(N, C, H, W)`` raw pixels and ``(N,)``.
    calibration : uint8 array
        Search images.
    judge : Judge
        Of the search set.
    recipe : FinetuneRecipe
        Its epochs and its rate do not count.
    bias_width : int
    per_channel : bool
        Whether every output channel of a layer has a power of two of its own as scale.
    """

    graph: fg.FloatGraph
    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    calibration: NDArray[np.uint8] = field(repr=False)
    judge: Judge = field(repr=False)
    recipe: FinetuneRecipe
    bias_width: int
    per_channel: bool

    def subset(self, epochs: float, seed: int) -> tuple[int, NDArray[np.int64]]:
        """Whole epochs, and the images of each, that make ``epochs`` in all."""
        whole = ceil(epochs)
        if not whole:
            return 0, np.arange(len(self.images))
        count = max(1, round(len(self.images) * epochs / whole))
        order = np.random.default_rng([seed, 1]).permutation(len(self.images))
        return whole, np.sort(order[:count])


def train_individual(
    trainer: Trainer, genes: Genes, *, epochs: float, seed: int, name: str, rate: float
) -> Individual:
    """Resize the trained network, train it on its grids, assemble and score it.

    Parameters
    ----------
    trainer : Trainer
    genes : mapping of str to LayerGenes
        Every convolution and linear layer.
    epochs : float
        A part of an epoch is an epoch of a part of the images.
    seed : int
    name : str
        Of the integer network.
    rate : float
        Largest learning rate.
    """
    graph = resize(trainer.graph, {n: g.factor for n, g in genes.items()}, seed=seed)
    config = QuantConfig(
        layers={
            n: LayerBits(weights=g.weights, biases=trainer.bias_width, activations=g.activations)
            for n, g in genes.items()
        }
    )
    assembler = Assembler(graph)
    seen = observe_graph(graph, trainer.calibration[:CALIBRATION_IMAGES])
    start = linear_plan(assembler, seen, config)
    whole, chosen = trainer.subset(epochs, seed)
    images, labels = trainer.images[chosen], trainer.labels[chosen]
    settled = int(SETTLED * whole * max(1, len(images) // trainer.recipe.batch))
    weights = {
        group.node.name: WeightGrid(
            genes[group.node.name].weights,
            per_channel=trainer.per_channel and not assembler.hands_out_accumulators(group),
            settled=settled,
        )
        for group in assembler.makers
        if group.node.name in genes
    }
    biases = {n: BiasCorrection(grid, seen.layers[n].mean_by_weight) for n, grid in weights.items()}
    outputs = _output_grids(assembler, start, settled)
    tuner = FineTuner(
        graph,
        images=images,
        labels=labels,
        recipe=replace(trainer.recipe, epochs=whole, rate=rate),
        seed=seed,
        weights=weights,
        biases=biases,
        outputs={
            g.last.name: outputs[g.node.name] for g in assembler.makers if g.node.name in outputs
        },
        teacher=trainer.graph,
    )
    try:
        for _ in range(whole):
            tuner.run_epoch()
    except BadInput as error:
        raise Diverged(str(error)) from error
    trained = tuner.graph()
    plan = _plan(trained, weights, biases, outputs, trainer.bias_width)
    network = assembler.assemble(plan, name)
    return Individual(
        genes=dict(genes),
        network=network,
        plan=plan,
        graph=trained,
        score=trainer.judge.score(network),
    )


def _output_grids(assembler: Assembler, start: Plan, settled: int) -> dict[str, ActivationGrid]:
    """The grids of all tensors that have a format, by the node that makes them.

    Tensors that must share a format keep the one that was chosen for all of them.
    """
    roots = [assembler.joint[group.last.name] for group in assembler.makers]
    grids = {}
    for group, root in zip(assembler.makers, roots, strict=True):
        name = group.node.name
        if name not in start.outputs:
            continue
        alone = roots.count(root) == 1 and root != assembler.joint[INPUT]
        grids[name] = ActivationGrid(start.outputs[name], settled=settled if alone else -1)
    return grids


def _plan(
    trained: fg.FloatGraph,
    weights: Mapping[str, WeightGrid],
    biases: Mapping[str, BiasCorrection],
    outputs: Mapping[str, ActivationGrid],
    bias_width: int,
) -> Plan:
    """What the network computed in the last steps of training."""
    layers = {}
    for name, grid in weights.items():
        node = trained.node(name)
        assert isinstance(node, fg.Conv | fg.Linear)
        with torch.no_grad():
            grid(torch.tensor(node.weight, dtype=torch.float32))
            bias = biases[name](torch.tensor(node.bias, dtype=torch.float32))
        scale = grid.scale()
        steps = scale.reshape(-1, *[1] * (node.weight.ndim - 1))
        codes = np.clip(np.floor(node.weight / steps + 0.5), grid.low, grid.high)
        layers[name] = LayerPlan(
            codes=codes.astype(np.int64),
            width=grid.width,
            scale=scale,
            bias=bias.double().numpy(),
            bias_width=bias_width,
        )
    return Plan(layers=layers, outputs={name: grid.form for name, grid in outputs.items()})
