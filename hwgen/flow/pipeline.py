"""One command from a trained network to verified, measured Verilog."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput
from hwgen.flow.hardware import (
    cosimulate,
    design_of,
    fold_network,
    pnr_figures,
    synth_figures,
    synthesize,
)
from hwgen.flow.methods import METHOD_FILE, saved_method
from hwgen.flow.model import Model
from hwgen.flow.options import HardwareOptions
from hwgen.flow.progress import Progress, Silent
from hwgen.flow.report import describe_layers, markdown
from hwgen.flow.steps import input_codes, integer_accuracy, quantize
from hwgen.flow.table import describe_dataflow
from hwgen.flow.workspace import Workspace, digest
from hwgen.ir.network import Network
from hwgen.ir.serial import load_network, save_network
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.lowering import check_buildable
from quant.config import LayerBits, QuantConfig
from quant.data.dataset import Dataset
from sim.tools import Simulator

__all__ = ["BuildOptions", "build", "build_network", "build_saved", "open_build"]

RECORD = "build.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build does besides the hardware itself.

    Parameters
    ----------
    hardware : HardwareOptions
    quant : QuantConfig
    images : mapping of Simulator to int
        Test images to co-simulate in each simulator; none leaves it out.
    synth, pnr : bool
        Whether to synthesise, and to place and route where the part allows.
    seed : int
        Of gaps, stalls and placement.
    """

    hardware: HardwareOptions
    quant: QuantConfig = field(default_factory=QuantConfig)
    images: Mapping[Simulator, int] = field(
        default_factory=lambda: {Simulator.ICARUS: 3, Simulator.VERILATOR: 20}
    )
    synth: bool = True
    pnr: bool = True
    seed: int = 1


def _record(options: HardwareOptions, data: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "data": data,
        "target": options.target.name,
        "clock_mhz": options.clock_mhz,
        "fps": options.fps,
        "cycles": options.cycles,
        "multipliers": options.multipliers,
        "pins": {layer: list(lanes) for layer, lanes in sorted(options.pins.items())},
        "argmax": options.argmax,
    }


def open_build(folder: Path) -> tuple[Dataflow, HardwareOptions, str]:
    """The dataflow, the hardware options and the data set's name of a build's folder.

    The dataflow is folded anew from the saved network and options; the Verilog is not looked at.

    Raises
    ------
    BadInput
        If it is no build's folder, or its record is of another schema or damaged.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}; give the folder of a build")
    workspace = Workspace(folder=folder)
    record = workspace.read(RECORD)
    try:
        if record["schema"] != SCHEMA:
            raise BadInput(
                f"{folder / RECORD} has schema {record['schema']}, this version reads {SCHEMA}; build it again"
            )
        options = HardwareOptions.of(
            record["target"],
            clock_mhz=record["clock_mhz"],
            fps=record["fps"],
            cycles=record["cycles"],
            multipliers=record["multipliers"],
            pins={layer: (lanes[0], lanes[1]) for layer, lanes in record["pins"].items()},
            argmax=record["argmax"],
        )
        data = str(record["data"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInput(f"{folder / RECORD} lacks or mistypes {error}; build it again") from error
    network = load_network(folder / "network")
    return fold_network(network, options), options, data


def simulate_step(
    workspace: Workspace,
    dataflow: Dataflow,
    design: Design,
    data: Dataset,
    options: BuildOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Co-simulate the test images, one step a simulator; results for ``cosim`` and what was measured."""
    out: dict[str, Any] = {"cosim": {}}
    for simulator, count in options.images.items():
        codes = input_codes(dataflow.network, data, count)
        if len(codes) < count:
            raise BadInput(
                f"{data.name} has {len(codes)} test images, fewer than {count}; ask for fewer"
            )
        key = digest(
            "cosim", 1, design.verilog, simulator.value, codes.tobytes().hex(), options.seed
        )

        def run(
            simulator: Simulator = simulator, count: int = count, codes: Any = codes
        ) -> dict[str, Any]:
            with progress.bar(f"simulate in {simulator.value}", count) as advance:
                (outcome,) = cosimulate(
                    dataflow,
                    design,
                    codes,
                    images={simulator: count},
                    seed=options.seed,
                    progress=lambda _, frames, total: advance(frames, total),
                )
            outcome.check()
            bulk = outcome.bulk
            result: dict[str, Any] = {"images": outcome.images, "mismatches": outcome.mismatches}
            if outcome.axi is not None:
                result["images_with_gaps_and_stalls"] = outcome.axi.images
            measured = {"interval": bulk.interval, "latency": bulk.latency}
            timing = {
                "build_seconds": round(bulk.build_seconds, 3),
                "run_seconds": round(bulk.seconds, 3),
                "cycles": bulk.cycles,
                "cycles_per_s": round(bulk.cycles / max(bulk.seconds, 1e-9), 1),
                "images_per_s": round(bulk.images / max(bulk.seconds, 1e-9), 3),
            }
            return {"result": {"cosim": result, "measured": measured}, "timing": timing}

        outcome = workspace.step(f"cosim.{simulator.value}", key, run)
        out["cosim"][simulator.value] = outcome["cosim"]
        for name, value in outcome["measured"].items():
            if value is not None:
                out.setdefault("measured", {})[name] = value
    return out


def synth_step(
    workspace: Workspace, design: Design, options: BuildOptions, progress: Progress
) -> dict[str, Any]:
    """Synthesis and place and route: ``synth`` and, where there is one, ``pnr``."""
    hardware = options.hardware
    want_pnr = options.pnr and hardware.target.placeable
    key = digest(
        "synth", 1, design.verilog, hardware.target.name, hardware.clock_mhz, want_pnr, options.seed
    )

    def run() -> dict[str, Any]:
        with progress.spinner(f"synthesise for {hardware.target.name}"):
            synth, placed = synthesize(
                design, hardware, work=workspace.folder / "synth", pnr=want_pnr, seed=options.seed
            )
        result: dict[str, Any] = {"synth": synth_figures(synth)}
        if placed is not None:
            result["pnr"] = pnr_figures(placed)
        return {"result": result}

    return workspace.step("synth", key, run)


def _settings(
    options: BuildOptions, model: Model | None, method: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was asked for; what was left open is absent."""
    hardware, quant = options.hardware, options.quant

    def text(bits: LayerBits) -> str:
        return f"{bits.weights}/{bits.biases}/{bits.activations}"

    settings: dict[str, Any] = {
        "fps": hardware.fps,
        "cycles": hardware.cycles,
        "multipliers": hardware.multipliers,
        "pins": {layer: list(lanes) for layer, lanes in sorted(hardware.pins.items())} or None,
        "argmax": hardware.argmax,
        "seed": options.seed,
    }
    if model is not None:
        settings |= {
            "bits": text(quant.bits),
            "layer_bits": {name: text(bits) for name, bits in sorted(quant.layers.items())} or None,
            "calibration": quant.activations.value,
            "rounding": quant.rounding.value,
            "pixel_scale": list(model.preprocess.scale),
            "pixel_offset": list(model.preprocess.offset),
        }
    if method is not None:
        settings["method"] = method.get("method")
    return {key: value for key, value in settings.items() if value is not None}


def _predictions(dataflow: Dataflow, cosim: dict[str, Any]) -> dict[str, Any]:
    measured = cosim.get("measured", {})
    cycles: dict[str, int] = {"predicted": dataflow.interval}
    latency: dict[str, int] = {"predicted": dataflow.latency}
    if "interval" in measured:
        cycles["measured"] = measured["interval"]
    if "latency" in measured:
        latency["measured"] = measured["latency"]
    return {"cycles": cycles, "latency": latency}


def _notes(report: dict[str, Any], hardware: HardwareOptions) -> list[str]:
    notes = []
    cycles = report["cycles"]
    allowed = hardware.frame_cycles
    if allowed is not None and cycles["predicted"] > allowed:
        notes.append(
            f"a frame takes {cycles['predicted']:,} cycles and {allowed:,} were asked for: a pinned layer is"
            f" slower; give {', '.join(sorted(hardware.pins))} more lanes or leave the pins out"
        )
    fmax = report.get("pnr", {}).get("fmax_mhz")
    if fmax is not None and fmax < hardware.clock_mhz:
        notes.append(
            f"the design reaches {fmax:.1f} MHz, not the {hardware.clock_mhz:g} MHz that the folding counted with;"
            f" --clock-mhz {int(fmax)} folds for what it reaches"
        )
    if fmax is not None and hardware.fps is not None and report["fps"] < hardware.fps:
        notes.append(
            f"{report['fps']:,.0f} frames a second are fewer than the {hardware.fps:,.0f} asked for"
        )
    return notes


def build(
    model: Model,
    data: Dataset,
    out: Path,
    options: BuildOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantise, generate, check, co-simulate, synthesise, and write it all to ``out``.

    Finished steps of an earlier, interrupted build with the same result are not done again.

    Parameters
    ----------
    model : Model
    data : Dataset
    out : Path
        Folder for ``network/``, ``rtl/<name>.v``, ``dataflow.json``, ``report.json``, ``report.md`` and
        ``timing.json``; the last alone differs from run to run.
    options : BuildOptions
    progress : Progress, optional

    Returns
    -------
    dict
        What ``report.json`` holds.

    Raises
    ------
    HwgenError
        Whatever step fails first; what was written before stays.
    """
    progress = progress or Silent()
    workspace = Workspace(folder=out)
    begun = time.perf_counter()
    with progress.spinner("quantise"):
        network = quantize(model, data, options.quant)
        check_buildable(network)
        save_network(network, out / "network")
    workspace.timed("quantise", begun)
    return build_network(network, data, workspace, options, progress, model=model)


def build_saved(
    folder: Path,
    data: Dataset,
    out: Path,
    options: BuildOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What :func:`build` does, from a saved integer network.

    Parameters
    ----------
    folder : Path
        Where :func:`hwgen.ir.save_network` or ``hwgen quantize`` wrote it; what the latter reports of
        it goes into the report.
    data : Dataset
    out : Path
    options : BuildOptions
        Its ``quant`` does not count.
    progress : Progress, optional

    Raises
    ------
    HwgenError
        Whatever step fails first; what was written before stays.
    """
    progress = progress or Silent()
    network = load_network(folder)
    check_buildable(network)
    method = saved_method(folder)
    workspace = Workspace(folder=out)
    save_network(network, out / "network")
    if method is not None:
        workspace.json(f"network/{METHOD_FILE}", method)
    return build_network(network, data, workspace, options, progress, method=method)


def build_network(
    network: Network,
    data: Dataset,
    workspace: Workspace,
    options: BuildOptions,
    progress: Progress,
    *,
    model: Model | None = None,
    method: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What :func:`build` does behind quantisation."""
    hardware = options.hardware
    begun = time.perf_counter()
    with progress.spinner("fold"):
        dataflow = fold_network(network, hardware)
        workspace.json(RECORD, _record(hardware, data.name))
        workspace.json("dataflow.json", describe_dataflow(dataflow))
    workspace.timed("fold", begun)
    begun = time.perf_counter()
    with progress.spinner("evaluate"):
        accuracy: dict[str, float] = {}
        if model is not None:
            accuracy["float"] = model.accuracy(data.test_images, data.test_labels)
        elif method is not None and method["test"]["images"] == len(data.test_labels):
            accuracy["float"] = method["test"]["float"]
        accuracy["integer"] = integer_accuracy(network, data)
    workspace.timed("evaluate", begun)
    begun = time.perf_counter()
    with progress.spinner("generate and check Verilog"):
        design, checks = design_of(dataflow, workspace)
    workspace.timed("generate", begun)
    cosim = simulate_step(workspace, dataflow, design, data, options, progress)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "name": network.name,
        "data": data.name,
        "target": hardware.target.name,
        "clock_mhz": hardware.clock_mhz,
        "settings": _settings(options, model, method),
        "accuracy": accuracy,
        "test_images": len(data.test_labels),
        "cosim": cosim["cosim"],
        **_predictions(dataflow, cosim),
        "multipliers": dataflow.multipliers,
    }
    if options.synth:
        report |= synth_step(workspace, design, options, progress)
    if "pnr" in report:
        report["fps"] = round(report["pnr"]["fmax_mhz"] * 1e6 / dataflow.interval, 2)
    report["layers"] = describe_layers(network, dataflow)
    report["checks"] = checks
    report["notes"] = _notes(report, hardware)
    if not dataflow.schedule.settled:
        report["notes"].append(
            "frames take turns in their cycles; the predicted ones are their mean"
        )
    if model is not None and model.graph.notes:
        report["import_notes"] = list(model.graph.notes)
    workspace.json("report.json", report)
    workspace.text("report.md", markdown(report))
    workspace.save_timing()
    return report
