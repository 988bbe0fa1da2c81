"""Layer-wise search of widths: the paper's walk, and searches by gain per bit or for given savings.

Goyal, Vanschoren, van Acht and Nijssen, "Fixed-point Quantization of Convolutional Neural Networks for
Quantized Inference on Embedded Platforms" (arXiv 2102.02147, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import Network
from quant.assemble import Assembler
from quant.baseline import observe_graph, with_preprocessing
from quant.checks import check_options, check_seed
from quant.cost import network_cost
from quant.graph import FloatGraph
from quant.grouping import group_nodes
from quant.judge import Judge
from quant.methods.layerwise_aim import AimedSearch
from quant.methods.layerwise_equalise import equalise
from quant.methods.layerwise_float import RoundedFloat
from quant.methods.layerwise_grids import find_norms
from quant.methods.layerwise_options import LayerwiseMode, LayerwiseOptions
from quant.methods.layerwise_paper import (
    PaperSearch,
    largest_values,
    paper_assembler,
    paper_cost,
    paper_network,
)
from quant.methods.layerwise_round import Calibrator
from quant.methods.layerwise_search import Evaluations, Search
from quant.methods.layerwise_space import Price, Space
from quant.methods.layerwise_walk import Kind
from quant.methods.result import Result, compare, float_accuracy
from quant.models import Preprocess
from quant.plan import Plan
from quant.progress import Progress, Silent
from quant.splits import Splits
from quant.state import SearchState, graph_digest

__all__ = ["LayerwiseMode", "LayerwiseOptions", "layerwise"]

SCORED_MACS = 10**11
"""Multiply-accumulates of the search images that are judged by default."""

FITTED_MACS = 10**10
"""Multiply-accumulates of the images to which weights are fitted."""

PROBED_MACS = 10**10
"""Multiply-accumulates of the images that sensitivities are measured on."""

FEWEST_TRAINING = 20
"""Training images without which there is nothing to fit to and to confirm with."""

FEWEST, MOST_FITTED = 300, 10_000
"""Fewest images of any of these, and most to which weights are fitted."""

MOST_CONTROL = 10_000
"""Most training images that confirm what the search chose."""


def layerwise(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: LayerwiseOptions | None = None,
    seed: int = 0,
    name: str = "network",
    progress: Progress | None = None,
    state: Path | None = None,
) -> Result:
    """Search the widths of every layer's weights, biases and activations.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        Training images give ranges and fit weights (improved mode), search images choose; where
        savings are asked for, the training images that confirm choose with them.
    options : LayerwiseOptions, optional
    seed : int
        Chooses the positions that weights are fitted to.
    name : str
        Of the integer network.
    progress : Progress, optional
    state : Path, optional
        File from which an interrupted search goes on, and to which it is saved.

    Returns
    -------
    Result
        The record holds the widths, the savings against 8 bits everywhere (``cost``), whether the
        limit was met on the search images (``limit_met``), and if not the best drop reached
        (``search_drop``) and the layer that binds (``binding``). The network is the best that was
        found in either case. In the improved mode training images that weights were not fitted to
        confirm it (``confirmation``): a network must keep the limit on those too. Where savings are
        asked for, the network is the most accurate found that saves as much.

    Raises
    ------
    BadInput
        If the search set is smaller than asked for, the savings asked for are beyond the narrowest
        widths, or ``state`` is of another search.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    options, seed = check_options(options, LayerwiseOptions), check_seed(seed)
    splits.searched(options.images)
    improved = options.mode is LayerwiseMode.IMPROVED
    if improved and len(splits.train_images) < FEWEST_TRAINING:
        raise BadInput(
            f"the improved mode needs at least {FEWEST_TRAINING} training images, to fit weights to"
            f" and to confirm, not {len(splits.train_images)}; give more"
        )
    whole = with_preprocessing(graph, preprocess)
    identity = {
        "method": "layerwise",
        "options": options.table(),
        "seed": seed,
        "graph": graph_digest(whole),
        "images": splits.digest(),
    }
    if improved and state is not None:  # digests of all images take a while
        identity["training"] = splits.training_digest()
    kept = SearchState(path=state, identity=identity)
    find = _improved if improved else _paper
    network, plan, record = find(whole, splits, options, seed, name, progress or Silent(), kept)
    record = {
        "options": options.table(),
        "seed": seed,
        "tuned_on_test": splits.tuned_on_test,
        "cost": network_cost(network).table(),
        **record,
    }
    return compare(
        "layerwise", whole, network, splits, record, plan=plan, max_drop=options.max_drop
    )


def _macs(graph: FloatGraph) -> int:
    """Multiply-accumulates of one image."""
    return sum(
        node.weight[0].size * int(np.prod(graph.shape(node.name))) for node in graph.mac_nodes
    )


def _some(images: NDArray[Any], budget: int, macs: int, most: int | None = None) -> int:
    """How many images a budget of multiply-accumulates allows."""
    count = max(FEWEST, budget // macs)
    return min(len(images), count if most is None else min(count, most))


def _paper(
    graph: FloatGraph,
    splits: Splits,
    options: LayerwiseOptions,
    seed: int,
    name: str,
    progress: Progress,
    kept: SearchState,
) -> tuple[Network, Plan, dict[str, Any]]:
    """The paper's search and the integer network of what it chose."""
    count = splits.searched(options.images)
    calibration = splits.search_images[: options.calibration]
    judge = RoundedFloat(
        graph,
        group_nodes(graph),
        splits.search_images[:count],
        splits.search_labels[:count],
        presume=options.presume,
    )
    search = PaperSearch(
        judge=judge,
        layers=tuple(node.name for node in graph.mac_nodes),
        largest=largest_values(graph, calibration),
        tolerance=options.limit,
    )
    found = kept.load()
    if found is not None:
        search.restore(found[0])
    with progress.steps("search widths", len(Kind) * len(search.layers)) as advance:
        search.run(lambda: kept.save(search.state(), {}), advance)
    network, plan = paper_network(paper_assembler(graph), search.chosen, calibration, name)
    drop = search.drop(judge.exact())
    return (
        network,
        plan,
        {
            "evaluations": search.evaluations,
            "history": search.drops,
            "starts": search.starts,
            "judged_drop": drop,
            "paper_cost": paper_cost(graph, search.chosen),
            **_verdict(drop, options.max_drop, lambda: search.binding()),
        },
    )


def _verdict(drop: float, limit: float, binding: Any) -> dict[str, Any]:
    """Whether a limit is met, and which layer binds if not."""
    met = bool(drop <= limit + 1e-12)
    return {"limit_met": met, "search_drop": drop} | ({} if met else {"binding": binding()})


def _improved(
    graph: FloatGraph,
    splits: Splits,
    options: LayerwiseOptions,
    seed: int,
    name: str,
    progress: Progress,
    kept: SearchState,
) -> tuple[Network, Plan, dict[str, Any]]:
    """The search by gain per bit, or for given savings."""
    calibration = splits.train_images[: options.calibration]
    level = equalise(graph, calibration)
    assembler = Assembler(level, scale_bits=options.scale_bits)
    norms = find_norms(level, calibration)
    space = Space(assembler, observe_graph(level, calibration), norms)
    macs = _macs(graph)
    images, labels = splits.search_images, splits.search_labels
    count = options.images or _some(images, SCORED_MACS, macs)
    probed = min(count, _some(images, PROBED_MACS, macs))
    half = splits.train_images[: len(splits.train_images) // 2]
    fitted = _some(half, FITTED_MACS, macs, MOST_FITTED)
    others = splits.train_images[fitted:], splits.train_labels[fitted:]
    control = _some(others[0], SCORED_MACS, macs, MOST_CONTROL)
    others = others[0][:control], others[1][:control]
    found = kept.load()
    journal: dict[str, list[Any]] = {} if found is None else dict(found[0]["journal"])
    evaluations = Evaluations(
        space=space,
        calibrator=Calibrator(
            assembler,
            splits.train_images[:fitted],
            seed,
            multipliers=options.multipliers,
            norms=norms,
        ),
        judge=Judge(images[:count], labels[:count]),
        probe=Judge(images[:probed], labels[:probed]),
        control=Judge(*others),
        journal=journal,
        save=lambda: kept.save({"journal": journal}, {}),
        biases=options.bias_bits,
    )
    exact = float_accuracy(graph, images[:count], labels[:count])
    control_accuracy = float_accuracy(graph, *others)
    search = _by_drop_or_savings(evaluations, options, (exact, count), (control_accuracy, control))
    with progress.steps("search widths", search.total) as advance:
        widths, score = search.run(advance)
    check = evaluations.confirmed(widths)
    network, plan = evaluations.network(widths, name)
    drop, confirmed = _drop(exact, score.accuracy), _drop(control_accuracy, check.accuracy)
    # The search keeps further away, by its tolerance; what was asked for is this.
    met = bool(max(drop, confirmed) <= options.max_drop + 1e-12)
    record = {
        "evaluations": sum(not key.startswith("saved") for key in journal),
        "images_judged": count,
        "confirmation": {"images": control, "drop": confirmed},
        "history": search.history,
        "widths": _table(space, widths.weights, widths.outputs),
        "search_drop": drop,
        "limit_met": met,
    }
    return network, plan, record | ({} if met else {"binding": evaluations.binding(widths)})


def _by_drop_or_savings(
    evaluations: Evaluations,
    options: LayerwiseOptions,
    judged: tuple[float, int],
    confirming: tuple[float, int],
) -> Search | AimedSearch:
    """The search that the options ask for.

    ``judged`` and ``confirming`` are the accuracy of the float network on images, and their number.
    """
    space = evaluations.space
    if options.aim is None:
        return Search(
            evaluations=evaluations,
            price=Price(space, options.multiplications),
            floor=_floor(*judged, options.limit),
            control_floor=_floor(*confirming, options.limit),
            tries=options.tries,
        )
    return AimedSearch(
        evaluations=evaluations, price=Price(space, 0.0), aim=options.aim, tries=options.tries
    )


def _floor(accuracy: float, images: int, limit: float) -> int:
    """The fewest correct images that a relative drop allows."""
    return ceil(round((1 - limit) * accuracy * images, 6))


def _drop(exact: float, integer: float) -> float:
    """The relative drop."""
    return (exact - integer) / exact if exact else 0.0


def _table(
    space: Space, weights: tuple[int, ...], outputs: tuple[int, ...]
) -> Mapping[str, Mapping[str, int]]:
    """Widths by layer."""
    return {
        "weights": dict(zip(space.layers, weights, strict=True)),
        "outputs": {" ".join(t): bits for t, bits in zip(space.tensors, outputs, strict=True)},
    }
