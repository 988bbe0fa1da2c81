"""A sweep of widths and frame rates: accuracy, hardware figures, a table and a plot."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.backends.rtl.design import Design
from hwgen.cost.fit import check_fit
from hwgen.cost.pnr import place_and_route
from hwgen.cost.synth import synthesise
from hwgen.errors import BadInput, DoesNotFit, ToolFailed
from hwgen.explore.plot import accuracy_against_lut
from hwgen.explore.point import Point, Status, table
from hwgen.files import ensure_folder, write_bytes, write_json, write_text
from hwgen.flow.hardware import fold_network, generate, pnr_figures, synth_figures
from hwgen.flow.model import Model
from hwgen.flow.options import HardwareOptions, parse_bits, quant_config
from hwgen.flow.progress import Progress, Silent
from hwgen.flow.steps import integer_accuracy, quantize
from hwgen.flow.table import describe_dataflow
from hwgen.flow.workspace import Workspace, digest
from hwgen.ir.network import Network
from hwgen.ir.serial import NETWORK_FILE, save_network
from hwgen.lower.dataflow import Dataflow
from quant.data.dataset import Dataset

__all__ = ["sweep"]

SCHEMA = 1
SEED = 1
"""Of the placement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantised:
    """The network of one choice of widths.

    Parameters
    ----------
    bits : str
    network : Network
    identity : str
        Equal for equal networks.
    accuracy : float
        Top-1 fraction on the test images.
    """

    bits: str
    network: Network
    identity: str
    accuracy: float


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise BadInput(f"a frame rate must be a number above 0, not {text!r}")
    return rate


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _parse(
    bits: Sequence[str],
    fps: Sequence[str],
    target: str,
    clock_mhz: float | None,
    pnr: bool,
) -> tuple[list[str], list[HardwareOptions]]:
    """Widths and hardware options to sweep, each once, in the order given."""
    widths = list(dict.fromkeys(text.strip() for text in bits))
    rates = list(dict.fromkeys(_parse_rate(text) for text in fps))
    if not widths or not rates:
        raise BadInput("a sweep needs at least one width and one frame rate; give some")
    for text in widths:
        parse_bits(text)
    options = [HardwareOptions.of(target, clock_mhz=clock_mhz, fps=rate) for rate in rates]
    if pnr and not options[0].target.placeable:
        raise BadInput(
            f"{options[0].target.name} has no place and route here; leave it out or take an ecp5 or"
            " ice40 part"
        )
    return widths, options


class _Sweep:
    """A sweep in progress: its folder, and steps that are kept as they are done."""

    def __init__(
        self, model: Model, data: Dataset, *, out: Path, pnr: bool, progress: Progress
    ) -> None:
        self.model, self.data = model, data
        self.workspace = Workspace(folder=out)
        self.pnr = pnr
        self.progress = progress
        labelled = hashlib.sha256(data.test_images.tobytes())
        labelled.update(data.test_labels.tobytes())
        self.images = labelled.hexdigest()

    def quantise(self, bits: str, calibration: str) -> _Quantised:
        """Quantise, save the network, and measure its accuracy unless that is done."""
        with self.progress.spinner(f"quantise to {bits} bits"):
            config = quant_config(bits, calibration=calibration)
            network = quantize(self.model, self.data, config)
        folder = self.workspace.folder / "networks" / _slug(bits)
        ensure_folder(folder.parent)
        save_network(network, folder)
        # This file holds the digest of the weights too.
        identity = hashlib.sha256((folder / NETWORK_FILE).read_bytes()).hexdigest()

        def compute() -> dict[str, Any]:
            with self.progress.spinner(f"evaluate at {bits} bits"):
                return {"result": {"accuracy": integer_accuracy(network, self.data)}}

        key = digest("accuracy", 1, identity, self.images)
        done = self.workspace.step(f"accuracy.{identity[:16]}", key, compute)
        return _Quantised(bits=bits, network=network, identity=identity, accuracy=done["accuracy"])

    def float_accuracy(self) -> float:
        """Top-1 fraction of the float network."""
        with self.progress.spinner("evaluate the float network"):
            return self.model.accuracy(self.data.test_images, self.data.test_labels)

    def figures(
        self, quantised: _Quantised, options: HardwareOptions, label: str
    ) -> dict[str, Any]:
        """Status, reason and hardware figures of a point, computed unless that is done.

        What a tool failed at is not kept, so that the next run tries again.
        """
        name = f"{_slug(quantised.bits)}.{_number(options.fps or 0)}"
        key = digest(
            "point", 1, quantised.identity, options.target.name, options.clock_mhz, options.fps,
            self.pnr,
        )  # fmt: skip

        def compute() -> dict[str, Any]:
            with self.progress.spinner(label):
                return {"result": self._measure(quantised.network, options, name)}

        try:
            return self.workspace.step(f"point.{name}", key, compute)
        except ToolFailed as error:
            reason = str(error).replace(f"{self.workspace.folder}/", "")
            return {"status": Status.FAILED.value, "reason": reason}

    def _measure(self, network: Network, options: HardwareOptions, name: str) -> dict[str, Any]:
        folder = ensure_folder(self.workspace.folder / "points") / name
        try:
            dataflow = fold_network(network, options)
        except DoesNotFit as error:
            shutil.rmtree(folder, ignore_errors=True)
            return {"status": Status.TOO_SLOW.value, "reason": str(error)}
        ensure_folder(folder)
        figures: dict[str, Any] = {"status": Status.OK.value}
        figures |= {
            "multipliers": dataflow.multipliers,
            "cycles": dataflow.interval,
            "latency": dataflow.latency,
            "fps_at_clock": round(options.clock_mhz * 1e6 / dataflow.interval, 2),
        }
        return figures | self._implement(dataflow, options, folder)

    def _implement(
        self, dataflow: Dataflow, options: HardwareOptions, folder: Path
    ) -> dict[str, Any]:
        """Verilog, synthesis, and place and route where asked for.

        Points with the same Verilog share the tools' work: a slow frame rate may need no less
        hardware than a slower one.
        """
        design = generate(dataflow)
        write_json(folder / "dataflow.json", describe_dataflow(dataflow))
        write_text(folder / f"{design.top}.v", design.verilog)
        part, clock = options.target, options.clock_mhz
        key = digest("tools", 1, design.verilog, part.name, self.pnr and clock)

        def compute() -> dict[str, Any]:
            return {"result": self._run_tools(design, options, folder / "work")}

        figures = dict(self.workspace.step(f"tools.{key[:16]}", key, compute))
        fmax = figures.pop("fmax_mhz", None)
        return figures if fmax is None else figures | _speed(fmax, dataflow, options)

    def _run_tools(self, design: Design, options: HardwareOptions, work: Path) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        try:
            synth = synthesise(design.verilog, design.top, options.target, work=work)
            mapped = synth_figures(synth)
            names = ("lut", "ff", "dsp", "bram", "bram_blocks", "bram_kbit")
            figures |= {name: mapped[name] for name in names}
            check_fit(synth, options.target)
            if self.pnr:
                placed = place_and_route(
                    synth, options.target, work=work, clock_mhz=options.clock_mhz, seed=SEED
                )
                figures["fmax_mhz"] = pnr_figures(placed)["fmax_mhz"]
        except DoesNotFit as error:
            figures |= {"status": Status.DOES_NOT_FIT.value, "reason": str(error)}
        # Tens of megabytes that nothing reads any more; where a tool failed they stay for a look.
        shutil.rmtree(work, ignore_errors=True)
        return figures


def _slug(bits: str) -> str:
    return bits.replace("/", "-")


def _speed(fmax_mhz: float, dataflow: Dataflow, options: HardwareOptions) -> dict[str, Any]:
    assert options.fps is not None
    fps = round(fmax_mhz * 1e6 / dataflow.interval, 2)
    speed: dict[str, Any] = {"fmax_mhz": fmax_mhz, "fps": fps}
    if fps < options.fps:
        speed |= {
            "status": Status.TOO_SLOW.value,
            "reason": f"it reaches {fmax_mhz:g} MHz after routing, and with {dataflow.interval}"
            f" cycles a frame {fps:g} of the {options.fps:g} frames a second; fold for a lower clock",
        }
    return speed


def _point(
    quantised: _Quantised, options: HardwareOptions, exact: float, figures: dict[str, Any]
) -> Point:
    layer = parse_bits(quantised.bits)
    assert options.fps is not None
    return Point(
        bits=quantised.bits,
        weight_bits=layer.weights,
        bias_bits=layer.biases,
        activation_bits=layer.activations,
        fps_target=options.fps,
        clock_mhz=options.clock_mhz,
        accuracy_float=exact,
        accuracy_integer=quantised.accuracy,
        **figures,
    )


def sweep(
    model: Model,
    data: Dataset,
    *,
    bits: Sequence[str],
    fps: Sequence[str],
    calibration: str = "mse",
    target: str = "ecp5-85k",
    clock_mhz: float | None = None,
    pnr: bool = False,
    out: Path,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure every combination of widths and frame rates.

    A run that was interrupted goes on with the first point that is not done.

    Parameters
    ----------
    model : Model
    data : Dataset
        Its test images give the accuracies.
    bits : sequence of str
        Widths, each ``N`` or weights/biases/activations; see
        :func:`~hwgen.flow.options.parse_bits`.
    fps : sequence of str
        Frames a second at the clock.
    calibration : str
        How ranges are found: ``mse``, ``max`` or ``percentile``.
    target : str
        FPGA part.
    clock_mhz : float, optional
        The part's usual one by default.
    pnr : bool
        Whether to place and route every point.
    out : Path
        Folder for ``points.csv``, ``points.json``, ``accuracy-lut.png`` and ``.svg``,
        ``networks/<bits>/``, ``points/<bits>.<fps>/`` with the Verilog, and ``timing.json``, which
        alone differs from run to run.
    progress : Progress, optional

    Returns
    -------
    list of dict
        Points in the order bits, frame rate. A point that does not fit or cannot reach its frame
        rate is among them, with ``status`` and ``reason``; figures that were not measured are
        absent. See :class:`~hwgen.explore.point.Point`.

    Raises
    ------
    BadInput
        If an argument is out of range, or ``out`` cannot be written.
    UnsupportedLayer
        If the network has layers without hardware.
    ToolFailed
        If a tool failed at every point.
    """
    widths, rates = _parse(bits, fps, target, clock_mhz, pnr)
    quant_config(widths[0], calibration=calibration)
    progress = progress or Silent()
    run = _Sweep(model, data, out=out, pnr=pnr, progress=progress)
    exact = run.float_accuracy()
    networks = [run.quantise(text, calibration) for text in widths]
    points: list[Point] = []
    for network in networks:
        for options in rates:
            label = (
                f"point {len(points) + 1} of {len(networks) * len(rates)}: {network.bits} bits,"
                f" {_number(options.fps or 0)} frames/s"
            )
            points.append(_point(network, options, exact, run.figures(network, options, label)))
    if all(point.status == Status.FAILED.value for point in points):
        raise ToolFailed(f"a tool failed at every point; at the last: {points[-1].reason}")
    records = [point.record() for point in points]
    heading = f"{model.name} on {data.name}, {rates[0].target.name}"
    png, svg = accuracy_against_lut(
        points, title=heading, images=len(data.test_labels), part=rates[0].target
    )
    write_text(out / "points.csv", table(points))
    write_json(
        out / "points.json",
        {
            "schema": SCHEMA,
            "name": model.name,
            "data": data.name,
            "target": rates[0].target.name,
            "clock_mhz": rates[0].clock_mhz,
            "calibration": calibration,
            "place_and_route": pnr,
            "points": records,
        },
    )
    write_bytes(out / "accuracy-lut.png", png)
    write_bytes(out / "accuracy-lut.svg", svg)
    run.workspace.save_timing()
    return records
