"""The steps of a build, each usable on its own from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design
from hwgen.backends.rtl.top import generate
from hwgen.cost.fit import check_fit
from hwgen.cost.pnr import PnrResult, place_and_route
from hwgen.cost.synth import SynthResult, synthesise
from hwgen.errors import BadInput
from hwgen.flow.model import Model, fit_images
from hwgen.flow.options import HardwareOptions
from hwgen.ir.network import Network
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.sizing import lower, lower_to_multipliers
from quant.config import QuantConfig
from quant.data.dataset import Dataset
from quant.linear import quantize_linear
from sim.tools import Simulator
from sim.verify import Verification, verify

__all__ = [
    "calibration_images",
    "cosimulate",
    "fold_network",
    "generate",
    "integer_accuracy",
    "quantize",
    "synthesize",
    "test_codes",
]

CALIBRATION_IMAGES = 500


def calibration_images(model: Model, data: Dataset, count: int = CALIBRATION_IMAGES) -> NDArray[np.uint8]:
    """The first ``count`` held-out training images, of the size that the model takes; never test images."""
    images = data.search_images if data.held_out else data.train_images
    return fit_images(images[:count], model)


def quantize(model: Model, data: Dataset, config: QuantConfig | None = None) -> Network:
    """The integer network of a float model by uniform post-training quantisation."""
    return quantize_linear(
        model.graph,
        preprocess=model.preprocess,
        calibration=calibration_images(model, data),
        config=config,
        name=model.name,
    )


def test_codes(network: Network, data: Dataset, count: int | None = None) -> NDArray[np.int64]:
    """The first ``count`` test images as input codes, cropped to the network's size."""
    height, width = network.input.shape[1:]
    images = data.test_images[:count]
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width].astype(np.int64)


def integer_accuracy(
    network: Network, data: Dataset, progress: Callable[[int, int], None] | None = None
) -> float:
    """Top-1 fraction of the integer network on all test images.

    Raises
    ------
    BadInput
        If the network takes images that the data set has not.
    """
    if network.input.channels != data.shape[0] or len(network.input.shape) != 3:
        raise BadInput(
            f"network {network.name} takes inputs of shape {network.input.shape}, the images of {data.name} are"
            f" {data.shape}; choose another data set"
        )
    out = network.evaluate(test_codes(network, data), progress=progress)
    classes = np.argmax(out.reshape(len(out), -1), axis=1)
    return float(np.mean(classes == data.test_labels))


def fold_network(network: Network, options: HardwareOptions) -> Dataflow:
    """The dataflow of a network for what ``options`` ask."""
    if options.multipliers is not None:
        return lower_to_multipliers(
            network, multipliers=options.multipliers, pins=options.pins, argmax=options.argmax
        )
    cycles = options.frame_cycles
    assert cycles is not None
    return lower(network, cycles=cycles, pins=options.pins, argmax=options.argmax)


def cosimulate(
    dataflow: Dataflow,
    design: Design,
    codes: NDArray[np.int64],
    *,
    images: Mapping[Simulator, int],
    gaps: float = 0.3,
    stalls: float = 0.3,
    seed: int = 0,
    trace: Path | None = None,
    progress: Callable[[Simulator, int, int], None] | None = None,
) -> tuple[Verification, ...]:
    """Run images through the design and compare every output with golden; see :func:`sim.verify.verify`."""
    return verify(
        design,
        dataflow.network,
        codes,
        images=images,
        expected=dataflow.expected(codes),
        interval=dataflow.interval,
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        trace=trace,
        progress=progress,
    )


def synthesize(
    design: Design, options: HardwareOptions, *, work: Path, pnr: bool = True, seed: int = 1
) -> tuple[SynthResult, PnrResult | None]:
    """Synthesise, check that it fits, and where the part allows place and route.

    Raises
    ------
    DoesNotFit
        Naming the resource, need and have, and the stages that take most.
    """
    synth = synthesise(design.verilog, design.top, options.target, work=work)
    check_fit(synth, options.target)
    if not pnr or not options.target.placeable:
        return synth, None
    placed = place_and_route(synth, options.target, work=work, clock_mhz=options.clock_mhz, seed=seed)
    return synth, placed


def synth_figures(synth: SynthResult) -> dict[str, Any]:
    """A synthesis result for ``report.json``."""
    return {
        "family": synth.family.value,
        "lut": synth.lut,
        "ff": synth.ff,
        "dsp": synth.dsp,
        "bram": synth.bram18,
        "bram_blocks": synth.bram,
        "bram_kbit": synth.bram_kbit,
        "instances": {
            name or "(top)": {"lut": c.lut, "ff": c.ff, "dsp": c.dsp, "bram_blocks": c.bram}
            for name, c in sorted(synth.instances.items())
        },
    }


def pnr_figures(placed: PnrResult) -> dict[str, Any]:
    """A place-and-route result for ``report.json``."""
    return {
        "part": placed.part.name,
        "fmax_mhz": round(placed.fmax_mhz, 2),
        "clock_mhz": placed.clock_mhz,
        "seed": placed.seed,
        "usage": {u.kind: {"used": u.used, "available": u.available} for u in placed.usage},
    }
