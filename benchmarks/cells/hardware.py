"""Hardware of the networks that the methods made: generated, co-simulated, synthesised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cells.common import NETWORKS, Cases, Cell, cells_of, markdown_table, percent
from hwgen.errors import Mismatch
from hwgen.files import ensure_folder
from hwgen.flow.methods import saved_method
from hwgen.flow.options import HardwareOptions
from hwgen.flow.pipeline import BuildOptions, build_saved
from sim.tools import Simulator

PART = "ecp5-85k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What is built.

    Parameters
    ----------
    method : str
    network : str
        One of :data:`benchmarks.cells.common.NETWORKS`.
    label : str
        The rest of the name of the cell that makes the network.
    """

    method: str
    network: str
    label: str

    @property
    def source(self) -> str:
        """The name of the cell that makes the network."""
        return f"{self.method}-{self.network}-{self.label}"


FULL = (
    Built(method="linear", network="lenet5-cifar10", label="b8"),
    Built(method="linear", network="lenet5-mnist", label="b8"),
    Built(method="adaptive", network="lenet5-cifar10", label="b4-clip-s0"),
    Built(method="adaptive", network="lenet5-cifar10", label="b4-codebook-s0"),
    Built(method="adaptive", network="lenet5-mnist", label="b3-codebook-s0"),
    Built(method="layerwise", network="lenet5-cifar10", label="improved"),
    Built(method="layerwise", network="lenet5-cifar10", label="shifts"),
    Built(method="layerwise", network="lenet5-mnist", label="improved"),
    Built(method="evolve", network="lenet5-own-cifar10", label="nsga2"),
    Built(method="evolve", network="lenet5-mnist", label="nsga2"),
    Built(method="cluster", network="lenet5-cifar10", label="b4-linear-pso-refit-tuned2-s0"),
    Built(method="cluster", network="lenet5-cifar10", label="b4-codebook-pso-refit-tuned2-s0"),
    Built(method="accumulator", network="lenet5-cifar10", label="p16-weights"),
    Built(method="accumulator", network="lenet5-cifar10", label="p12-weights"),
    Built(method="accumulator", network="lenet5-mnist", label="p12-weights"),
)
QUICK = (Built(method="layerwise", network="digits-tiny", label="improved"),)

FULL_IMAGES = {Simulator.ICARUS: 1, Simulator.VERILATOR: 5}
QUICK_IMAGES = {Simulator.VERILATOR: 3}
FPS = 1000.0


def cells(quick: bool) -> list[Cell]:
    """A cell for each network that is built."""
    found = []
    for built in QUICK if quick else FULL:
        sources = {cell.name: cell for cell in cells_of(built.method, quick)}
        source = sources[built.source]
        images = QUICK_IMAGES if quick else FULL_IMAGES
        found.append(
            Cell(
                name=f"hardware-{source.name}",
                run=partial(_run, built=built, source=source, images=images),
                config={
                    "source": dict(source.config),
                    "version": source.version,
                    "images": {simulator.value: count for simulator, count in images.items()},
                    "part": PART,
                    "fps": FPS,
                },
            )
        )
    return found


def _run(
    cases: Cases, *, built: Built, source: Cell, images: Mapping[Simulator, int]
) -> dict[str, Any]:
    """Generate, check, co-simulate and synthesise; what differs from golden stops it."""
    folder = cases.made(source)
    out = ensure_folder(cases.work / "hardware" / source.name)
    report = build_saved(
        folder,
        cases.dataset(NETWORKS[built.network].data),
        out,
        BuildOptions(hardware=HardwareOptions.of(PART, fps=FPS), images=images, pnr=False),
    )
    method = saved_method(folder)
    if method is None or method["test"]["integer"] != report["accuracy"]["integer"]:
        raise Mismatch(f"what {source.name} kept is not the network that it measured; run it again")
    kept = ("accuracy", "cosim", "cycles", "latency", "multipliers", "checks", "notes")
    synth = {name: report["synth"][name] for name in ("lut", "ff", "dsp", "bram_blocks")}
    return {
        "method": built.method,
        "network": built.network,
        "source": source.name,
        **{name: report[name] for name in kept},
        "synth": synth,
    }


def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """What was compared and what it takes."""
    rows = []
    for result in results.values():
        compared = ", ".join(
            f"{simulator} {done['images'] - done['mismatches']}/{done['images']}"
            for simulator, done in sorted(result["cosim"].items())
        )
        cycles, synth = result["cycles"], result["synth"]
        rows.append(
            (
                result["source"],
                percent(result["accuracy"]["integer"]),
                compared,
                f"{cycles['predicted']:,} / {cycles['measured']:,}",
                result["multipliers"],
                f"{synth['lut']:,}",
                f"{synth['ff']:,}",
                synth["dsp"],
                synth["bram_blocks"],
            )
        )
    header = (
        *("network of the cell", "integer, test", "images bit-exact"),
        *("cycles a frame, predicted / measured", "multipliers"),
        *("LUT", "flip-flops", "DSP", "memory blocks"),
    )
    text = (
        "Verilog of the networks that the methods made of LeNet-5, for"
        f" {FPS:,.0f} frames a second at the clock of {PART}, read back and audited, linted, run in"
        " the simulators beside the golden model and synthesised with Yosys: what"
        " `hwgen build --network` does. Every output code is compared, and the cycle in which every"
        " image leaves. Networks with joins stop at the golden model: `hwgen build` refuses them by"
        " name.\n\n"
    )
    return text + markdown_table(header, rows)
