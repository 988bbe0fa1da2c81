"""Formats for a given accumulator; re-implemented from the published abstract, and taken further.

B. de Bruin, Z. Zivkovic, H. Corporaal: "Quantization of deep neural networks for accumulator-
constrained processors", Microprocessors and Microsystems 72, 2020: for accumulators of P bits the
pairs of data and weight widths that fill them, layer by layer, and a search for the most accurate
ones. Then weights are fitted to the bound themselves: see :mod:`quant.methods.accumulator_fit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwgen.errors import BadInput
from hwgen.ir import MacOp, Network
from quant.baseline import with_preprocessing
from quant.checks import check_options, check_seed
from quant.graph import FloatGraph
from quant.judge import Judge, score_outputs
from quant.methods.accumulator_bounds import Bound, count_wraps
from quant.methods.accumulator_options import AccumulatorOptions
from quant.methods.accumulator_run import Run
from quant.methods.accumulator_scales import Scales
from quant.methods.result import Result, compare
from quant.models import Preprocess
from quant.progress import Progress, Silent
from quant.splits import Splits
from quant.state import SearchState, graph_digest

__all__ = ["AccumulatorOptions", "Bound", "Scales", "accumulator"]


def accumulator(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: AccumulatorOptions | None = None,
    seed: int = 0,
    name: str = "network",
    progress: Progress | None = None,
    state: Path | None = None,
) -> Result:
    """Quantise so that every layer's accumulator fits P bits, as accurately as can be.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        Search images calibrate and judge; training images are for fine-tuning only.
    options : AccumulatorOptions, optional
    seed : int
        Of the samples of calibration images and of fine-tuning.
    name : str
        Of the integer network.
    progress : Progress, optional
    state : Path, optional
        File that keeps how far the search is; a later run with the same arguments goes on from it.

    Returns
    -------
    Result
        Under :attr:`Bound.FORMATS` and :attr:`Bound.WEIGHTS` every accumulator of the network has
        at most P bits. Under :attr:`Bound.CALIBRATED` accumulators stay as wide as the weights
        need, and the record says how many on the search and test images P bits would not hold, and
        what the network would reach if they wrapped around.

    Raises
    ------
    BadInput
        If no widths make a layer fit, naming the layer, the channel and the narrowest accumulator;
        more images are to judge than the search set has; or a state is of another search.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    options, seed = check_options(options, AccumulatorOptions), check_seed(seed)
    splits.searched(options.images)
    if options.epochs and len(splits.train_images) == 0:
        raise BadInput("fine-tuning needs training images, and there are none; ask for 0 epochs")
    whole = with_preprocessing(graph, preprocess)
    saved = SearchState(path=state, identity=_identity(whole, splits, options, seed))
    total = 2 * options.evaluations + options.epochs
    with (progress or Silent()).steps(f"fit {options.bits}-bit accumulators", total) as advance:
        run: Run

        def tell(text: str) -> None:
            done = run.book.asked + int(run.tuner.get("epoch", 0))
            advance(min(done, total), total, text)

        run = Run(whole, splits, options, seed, name, saved, tell)
        run.search_pairs()
        if options.project:
            run.search_fitted()
            run.refine()
            if options.bound is Bound.CALIBRATED:
                run.widen_steps()
        if options.epochs:
            run.tune()
    return _result(run, whole)


def _identity(
    whole: FloatGraph, splits: Splits, options: AccumulatorOptions, seed: int
) -> dict[str, Any]:
    """What decides a search, as its state keeps it."""
    trained = {"training images": splits.training_digest()} if options.epochs else {}
    return {
        "method": "accumulator",
        "options": options.json(),
        "seed": seed,
        "network": graph_digest(whole),
        "search images": splits.digest(),
        **trained,
    }


def _result(run: Run, whole: FloatGraph) -> Result:
    """The best network, and the record."""
    options, splits, chosen = run.options, run.splits, run.best()
    if options.bound is not Bound.CALIBRATED:
        wide = [op.name for op in _macs(chosen.network) if op.accumulator_width > options.bits]
        if wide:  # a method that broke its promise must not give a result, with -O neither
            raise RuntimeError(
                f"the accumulators of {', '.join(wide)} exceed {options.bits} bits; report this"
            )
    judge = Judge(splits.test_images, splits.test_labels)
    stages = [
        {
            "stage": stage.name,
            "search": {"accuracy": stage.score.accuracy, "loss": stage.score.loss},
            "test": judge.score(stage.network).accuracy,
            "layers": _layers(stage.network),
        }
        for stage in run.stages
    ]
    record: dict[str, Any] = {
        "options": options.json(),
        "seed": run.seed,
        "judged_images": len(run.images),
        "evaluations": len(run.book.scores),
        "history": run.book.history,
        "pairs": run.pairs,
        "stages": stages,
        "chosen": chosen.name,
        "accumulators": max(op.accumulator_width for op in _macs(chosen.network)),
    }
    if options.bound is Bound.CALIBRATED:
        record["wraps"] = _wraps(run, chosen.network)
    return compare("accumulator", whole, chosen.network, splits, record, plan=chosen.plan)


def _macs(network: Network) -> list[MacOp]:
    return [op for op in network.ops if isinstance(op, MacOp)]


def _layers(network: Network) -> list[dict[str, Any]]:
    """Widths of every layer."""
    return [
        {
            "layer": op.name,
            "data": op.input.width,
            "weights": op.weights.width,
            "accumulator": op.accumulator_width,
        }
        for op in _macs(network)
    ]


def _wraps(run: Run, network: Network) -> dict[str, Any]:
    """What P-bit accumulators would do to a network that only calibration images are known to fit."""
    bits, splits = run.options.bits, run.splits
    found: dict[str, Any] = {}
    sets = {
        "calibration": (run.calibration, splits.search_labels[: len(run.calibration)]),
        "search": (splits.search_images, splits.search_labels),
        "test": (splits.test_images, splits.test_labels),
    }
    for kind, (images, labels) in sets.items():
        exact, _ = count_wraps(network, images, bits)
        outputs = count_wraps(network, images, bits, wrap=True)[1]
        score = score_outputs(outputs, labels, network.output_type.scale)
        found[kind] = {
            "images": exact.images,
            "accumulators": exact.total,
            "images_touched": exact.touched,
            "layers": dict(exact.layers),
            "accuracy_if_wrapped": score.accuracy,
        }
    return found
