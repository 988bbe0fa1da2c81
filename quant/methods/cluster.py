"""Prune, cluster with a particle swarm's K-means, quantise linearly (after Yang, Zhi, Tong 2023).

Re-implemented from the published abstract: gradual magnitude pruning with fine-tuning between its
steps; per layer K-means of the remaining weights from a start that a particle swarm finds, zero
being a code of its own; then the centroids on the integer grid, so that hardware multiplies plain
integers. Beyond it: the clusters as a codebook, other starts, exact clusters, a fit of the clusters
to the outputs of their layers, and quantisation-aware fine-tuning at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwgen.errors import BadInput
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.calibrate import Statistics
from quant.checks import check_options, check_seed
from quant.config import LayerBits, QuantConfig
from quant.finetune import FineTuner
from quant.graph import FloatGraph
from quant.judge import Judge
from quant.methods.cluster_layers import (
    ClusteredLayer,
    Compensated,
    cluster_layer,
    layer_plan,
    tuned_plan,
    tuning_map,
)
from quant.methods.cluster_options import ClusterOptions
from quant.methods.cluster_prune import Pruner, Scope, sparsity_of
from quant.methods.cluster_refit import refit
from quant.methods.cluster_seeds import Seeding, Swarm
from quant.methods.result import Result, compare, float_accuracy
from quant.models import Preprocess
from quant.plan import LayerPlan, Plan
from quant.progress import Progress, Silent
from quant.splits import Splits
from quant.state import SearchState, graph_digest
from quant.straight import fixed_ste

__all__ = ["ClusterOptions", "Scope", "Seeding", "Swarm", "cluster", "prune"]

CALIBRATION_IMAGES = 500


def prune(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: ClusterOptions,
    seed: int = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> FloatGraph:
    """The pruned network of raw pixels: the first part of :func:`cluster`, to be shared.

    Raises
    ------
    BadInput
        As :func:`cluster`.
    """
    options, whole = check_options(options, ClusterOptions), with_preprocessing(graph, preprocess)
    run = _Run(whole, splits, options, seed, progress or Silent(), state, kind="prune")
    return run.pruned()


def cluster(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: ClusterOptions | None = None,
    seed: int = 0,
    name: str = "network",
    pruned: FloatGraph | None = None,
    progress: Progress | None = None,
    state: Path | None = None,
) -> Result:
    """Prune a network, cluster its weights, and put the clusters on an integer grid.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        The training images prune and tune; to the first 500 search images, which calibrate, levels
        are fitted.
    options : ClusterOptions, optional
    seed : int
        Of training, swarms and starts.
    name : str
        Of the integer network.
    pruned : FloatGraph, optional
        What :func:`prune` made of the same network, so that it is not done again.
    progress : Progress, optional
    state : Path, optional
        File that holds how far the search is, written after every epoch.

    Raises
    ------
    BadInput
        If there are no training images, ``state`` is of another search, or training diverges.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    options = check_options(options, ClusterOptions)
    whole = with_preprocessing(graph, preprocess)
    run = _Run(whole, splits, options, seed, progress or Silent(), state, pruned=pruned)
    options, sparse = run.options, run.pruned()
    seen = observe_graph(sparse, splits.search_images[:CALIBRATION_IMAGES])
    assembler = Assembler(sparse)
    clusters = run.clusters(sparse)
    judge = Judge(splits.search_images, splits.search_labels)
    with run.progress.steps("quantise", 1) as advance:
        plan, fitted = _plan(assembler, seen, clusters, options), clusters
        if options.refit:
            images = splits.search_images[:CALIBRATION_IMAGES]
            fitted, plan = refit(assembler, images, clusters, plan, options)
        network = assembler.assemble(plan, name)
        score = judge.score(network)
        advance(1, 1, f"{score.accuracy:.2%}")
    run.history.append({"step": "cluster", "search": score.accuracy})
    best = (score, network, plan, sparse)
    if options.tune_epochs:
        tuned = run.tuned(assembler, seen, sparse, fitted, plan)
        layers = {
            node.name: tuned_plan(
                node,
                fitted[node.name],
                plan.layer(node.name),
                seen.layers[node.name],
                compensated=options.refit,
            )
            for node in tuned.mac_nodes
        }
        plan = plan.with_layers(**layers)
        network = assembler.assemble(plan, name)
        score = judge.score(network)
        run.history.append({"step": "tune", "search": score.accuracy})
        best = max(best, (score, network, plan, tuned), key=lambda item: item[0])
    _, network, plan, trained = best
    record = run.record(sparse, clusters, plan)
    return compare("cluster", whole, network, splits, record, plan=plan, trained=trained)


def _plan(
    assembler: Assembler,
    seen: Statistics,
    clusters: Mapping[str, ClusteredLayer],
    options: ClusterOptions,
) -> Plan:
    """Constants of all layers; formats of activations as the baseline chooses them."""
    bits = LayerBits(weights=8, biases=options.bias_bits, activations=options.activation_bits)
    base = linear_plan(assembler, seen, QuantConfig(bits=bits))
    layers = {
        node.name: layer_plan(
            node,
            clusters[node.name],
            seen.layers[node.name],
            bits=options.bits,
            entry_bits=options.entry_bits if options.codebook else None,
            bias_bits=options.bias_bits,
            power_of_two=options.power_of_two,
        )
        for node in assembler.graph.mac_nodes
    }
    return base.with_layers(**layers)


def _moved(sparse: FloatGraph, clusters: Mapping[str, ClusteredLayer], plan: Plan) -> FloatGraph:
    """The network whose weights are their clusters' levels, with the plan's biases."""
    found = {
        n.name: replace(n, weight=clusters[n.name].weights, bias=plan.layer(n.name).bias)
        for n in sparse.mac_nodes
    }
    return replace(sparse, nodes=tuple(found.get(node.name, node) for node in sparse.nodes))


class _Run:
    """The steps of the method, each of which goes on where its state is."""

    def __init__(
        self,
        whole: FloatGraph,
        splits: Splits,
        options: ClusterOptions,
        seed: int,
        progress: Progress,
        state: Path | None,
        *,
        pruned: FloatGraph | None = None,
        kind: str = "cluster",
    ) -> None:
        count = options.images
        self._images, self._labels = splits.train_images[:count], splits.train_labels[:count]
        self._schedule = plan = options.schedule(len(self._images))
        self.options = options = replace(options, **asdict(plan))
        trains = (plan.epochs and pruned is None) or plan.tune_epochs
        if trains and len(self._images) < plan.batch:
            raise BadInput(
                f"pruning needs at least a batch of {plan.batch} training images, not"
                f" {len(self._images)}; give more or a smaller batch, or set the epochs to 0"
            )
        self._whole, self._splits = whole, splits
        self._seed = seed = check_seed(seed)
        self.progress, self._given = progress, pruned
        self.history: list[dict[str, Any]] = []
        chosen = options.pruning() if kind == "prune" else options.record()
        identity = {"method": kind, "options": chosen, "seed": seed}
        if state is not None:  # digests of all images take a while
            identity |= {
                "network": graph_digest(whole),
                "pruned": None if pruned is None else graph_digest(pruned),
                "search_images": splits.digest(),
                "training_images": splits.training_digest(),
            }
        self._state = SearchState(path=state, identity=identity)
        record, self._arrays = self._state.load() or ({}, {})
        self._losses: dict[str, list[float]] = record.get("losses", {})

    def pruned(self) -> FloatGraph:
        """The pruned network."""
        if self._given is not None:
            return self._given
        options, epochs = self.options, self._schedule.epochs
        pruner = Pruner(options.sparsity, options.scope, options.ramp)
        tuner = FineTuner(
            self._whole,
            images=self._images if epochs else self._splits.search_images,
            labels=self._labels if epochs else self._splits.search_labels,
            recipe=options.recipe(epochs, options.rate, self._schedule.batch),
            seed=self._seed,
        )
        if not epochs:
            pruner.finish(tuner)
        self._train("prune", tuner, epochs, pruner)
        return tuner.graph()

    def tuned(
        self,
        assembler: Assembler,
        seen: Statistics,
        sparse: FloatGraph,
        clusters: Mapping[str, ClusteredLayer],
        plan: Plan,
    ) -> FloatGraph:
        """The network fine-tuned with its clusters and formats in the forward pass."""
        options, epochs = self.options, self._schedule.tune_epochs
        maps = {n: tuning_map(clusters[n], plan.layer(n)) for n in plan.layers}
        made = {n: Compensated(maps[n], seen.layers[n]) for n in maps if options.refit}
        # On the integer grid weights begin where pruning left them: from the middle of their steps
        # short training would move none to another.
        fitted = options.refit and options.codebook
        tuner = FineTuner(
            _moved(sparse, clusters, plan) if fitted else sparse,
            images=self._images,
            labels=self._labels,
            recipe=options.recipe(epochs, options.rate / 10, self._schedule.batch),
            seed=self._seed + 1,
            weights=maps | {n: one.weights for n, one in made.items()},
            biases={n: one.biases for n, one in made.items()},
            outputs={
                group.last.name: fixed_ste(plan.outputs[group.node.name])
                for group in assembler.makers
                if group.node.name in plan.outputs
            },
            masks={node.name: node.weight != 0 for node in sparse.mac_nodes},
            teacher=self._whole,
        )
        self._train("tune", tuner, epochs, None)
        return tuner.graph()

    def _train(self, step: str, tuner: FineTuner, epochs: int, pruner: Pruner | None) -> None:
        """Train to the end from where the state is, keeping the state after every epoch."""
        prefix = f"{step}/"
        mine = {k[len(prefix) :]: v for k, v in self._arrays.items() if k.startswith(prefix)}
        losses = self._losses.setdefault(step, [])
        if mine:
            tuner.restore(mine)
        with self.progress.steps(step, epochs) as advance:
            while tuner.epoch < epochs:
                losses.append(tuner.run_epoch(pruner))
                kept = {f"{prefix}{k}": v for k, v in tuner.arrays().items()}
                self._arrays = {**self._arrays, **kept}
                self._state.save({"losses": self._losses}, self._arrays)
                advance(tuner.epoch, epochs, f"loss {losses[-1]:.4f}")

    def clusters(self, sparse: FloatGraph) -> dict[str, ClusteredLayer]:
        """The clusters of every layer."""
        options, nodes, found = self.options, sparse.mac_nodes, {}
        with self.progress.steps("cluster", len(nodes)) as advance:
            for place, node in enumerate(nodes):
                generator = np.random.default_rng([self._seed, place])
                found[node.name] = cluster_layer(
                    node.weight, options.bits, options.seeding, generator, options.swarm
                )
                advance(place + 1, len(nodes), node.name)
        return found

    def record(
        self, sparse: FloatGraph, clusters: Mapping[str, ClusteredLayer], plan: Plan
    ) -> dict[str, Any]:
        """What the result tells besides accuracies."""
        images, labels = self._splits.search_images, self._splits.search_labels
        exact = float_accuracy(sparse, images, labels)
        return {
            "options": self.options.record(),
            "seed": self._seed,
            "evaluations": len(self.history),
            "history": [{"step": "prune", "search": exact}, *self.history],
            "losses": self._losses,
            "pruned_search": exact,
            "sparsity": sparsity_of(sparse),
            "layers": {
                name: _layer_record(clusters[name], plan.layer(name)) for name in plan.layers
            },
            "storage": _storage(plan),
        }


def _layer_record(layer: ClusteredLayer, plan: LayerPlan) -> dict[str, Any]:
    return {
        "weights": plan.codes.size,
        "pruned": int((layer.bins == 0).sum()),
        "zero_codes": int((plan.codes == 0).sum()),
        "clusters": len(layer.levels),
        "codes": len(np.unique(plan.codes)),
        "within_cluster_squares": layer.error,
        "least_squares": layer.least,
        "step": float(plan.scale[0]),
    }


def _storage(plan: Plan) -> dict[str, int]:
    """Bits of the weights: as the hardware stores them, and what skipping zeros would store.

    ``bitmap``: a bit for each weight that tells whether it is 0, and the codes of the others. The
    generated hardware stores and multiplies zeros like any other code.
    """
    dense = bitmap = float32 = 0
    for layer in plan.layers.values():
        entries = layer.codebook or ()
        width = max(1, (len(entries) - 1).bit_length()) if entries else layer.width
        table = len(entries) * layer.width
        others = int((layer.codes != 0).sum())
        dense += layer.codes.size * width + table
        bitmap += layer.codes.size + others * width + table
        float32 += 32 * layer.codes.size
    return {"float32": float32, "dense": dense, "bitmap": bitmap}
