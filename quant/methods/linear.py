"""The baseline as a method: uniform quantisation at given widths, nothing searched."""

from __future__ import annotations

from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.checks import check_options
from quant.config import QuantConfig
from quant.graph import FloatGraph
from quant.methods.result import Result, compare
from quant.models import Preprocess
from quant.progress import Progress, Silent
from quant.splits import Splits

__all__ = ["CALIBRATION_IMAGES", "linear"]

CALIBRATION_IMAGES = 500


def linear(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    config: QuantConfig | None = None,
    name: str = "network",
    progress: Progress | None = None,
) -> Result:
    """Quantise uniformly with a power-of-two scale per tensor.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        The first 500 search images calibrate.
    config : QuantConfig, optional
        8 bits by default.
    name : str
        Of the integer network.
    progress : Progress, optional

    Raises
    ------
    BadInput
        If a width is given for a layer that is not there.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    config = check_options(config, QuantConfig)
    whole = with_preprocessing(graph, preprocess)
    assembler = Assembler(whole, rounding=config.rounding, scale_bits=config.scale_bits)
    with (progress or Silent()).steps("quantise", 1) as advance:
        seen = observe_graph(whole, splits.search_images[:CALIBRATION_IMAGES])
        plan = linear_plan(assembler, seen, config)
        network = assembler.assemble(plan, name)
        advance(1, 1, "")
    return compare("linear", whole, network, splits, {"evaluations": 0}, plan=plan)
