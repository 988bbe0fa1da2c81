"""Simulate and synthesise what a build left in its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput
from hwgen.flow.hardware import cosimulate, generate, pnr_figures, synth_figures, synthesize
from hwgen.flow.options import HardwareOptions
from hwgen.flow.pipeline import open_build
from hwgen.flow.progress import Progress, Silent
from hwgen.flow.steps import input_codes
from hwgen.lower.dataflow import Dataflow
from hwgen.targets import find_part
from quant.datasets import load_dataset
from sim.tools import Simulator

__all__ = ["load_design", "simulate_build", "synthesize_build"]


def load_design(folder: Path) -> tuple[Dataflow, Design, HardwareOptions, str]:
    """The dataflow, the Verilog as it lies in the folder, the options and the data set's name.

    Raises
    ------
    BadInput
        If the Verilog is missing.
    """
    dataflow, options, data = open_build(folder)
    design = generate(dataflow)
    path = folder / "rtl" / f"{design.top}.v"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}; build it again") from error
    return dataflow, replace(design, verilog=text), options, data


def simulate_build(
    folder: Path,
    *,
    data_dir: Path | None,
    images: int,
    simulator: str,
    gaps: float,
    stalls: float,
    seed: int,
    trace: Path | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run test images through a build's Verilog and compare every output with golden.

    Returns
    -------
    dict
        Images, mismatches, cycles predicted and measured, and speed.

    Raises
    ------
    Mismatch
        Naming the first layer, channel, row, column and cycle that differ.
    """
    progress = progress or Silent()
    dataflow, design, _, name = load_design(folder)
    data = load_dataset(name, data_dir=data_dir)
    codes = input_codes(dataflow.network, data, images)
    if len(codes) < images:
        raise BadInput(f"{name} has {len(codes)} test images, fewer than {images}; ask for fewer")
    kind = Simulator(simulator)
    with progress.bar(f"simulate in {simulator}", images) as advance:
        (outcome,) = cosimulate(
            dataflow,
            design,
            codes,
            images={kind: images},
            gaps=gaps,
            stalls=stalls,
            seed=seed,
            trace=trace,
            progress=lambda _, done, total: advance(done, total),
        )
    outcome.check()
    bulk = outcome.bulk
    figures: dict[str, Any] = {
        "images": outcome.images,
        "mismatches": outcome.mismatches,
        "cycles_predicted": dataflow.interval,
        "latency_predicted": dataflow.latency,
    }
    if bulk.interval is not None:
        figures["cycles_measured"] = bulk.interval
    if bulk.latency is not None:
        figures["latency_measured"] = bulk.latency
    figures["cycles_per_s"] = round(bulk.cycles / max(bulk.seconds, 1e-9), 1)
    figures["images_per_s"] = round(bulk.images / max(bulk.seconds, 1e-9), 2)
    return figures


def synthesize_build(
    folder: Path,
    *,
    target: str | None,
    clock_mhz: float | None,
    pnr: bool,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Synthesise a build's Verilog, for its own part or another.

    Raises
    ------
    DoesNotFit
        Naming the resource, need and have, and the stages that take most.
    """
    progress = progress or Silent()
    dataflow, design, options, _ = load_design(folder)
    if target is not None:
        part = find_part(target)
        options = replace(options, target=part, clock_mhz=part.clock_mhz)
    if clock_mhz is not None:
        options = replace(options, clock_mhz=clock_mhz)
    with progress.spinner(f"synthesise for {options.target.name}"):
        synth, placed = synthesize(design, options, work=folder / "synth", pnr=pnr, seed=seed)
    figures: dict[str, Any] = {
        "name": dataflow.network.name,
        "target": options.target.name,
        "cycles": {"predicted": dataflow.interval},
        "multipliers": dataflow.multipliers,
        "synth": synth_figures(synth),
    }
    if placed is not None:
        figures["pnr"] = pnr_figures(placed)
        figures["fps"] = round(placed.fmax_mhz * 1e6 / dataflow.interval, 2)
    return figures
