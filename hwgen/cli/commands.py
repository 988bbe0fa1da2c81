"""What each command takes and does. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hwgen.cli import args, quantize, show
from hwgen.errors import BadInput

__all__ = ["COMMANDS", "Command"]

Arguments = argparse.Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: its name, one sentence of help, its arguments and what it does."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def _doctor(arguments: Arguments) -> int:
    from rich.console import Console

    from hwgen.doctor import diagnose, table

    statuses = diagnose()
    Console().print(table(statuses))
    return 0


def _train_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--model", required=True, help="lenet5, digits-tiny or allcnn")
    args.data_arguments(part)
    part.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    part.add_argument("--epochs", type=args.positive, help="the recipe's own by default")
    part.add_argument("--seed", type=args.natural, default=0)
    part.add_argument(
        "--threads", type=args.positive, help="threads of PyTorch; its own choice by default"
    )
    part.add_argument(
        "--max-seconds", type=args.above_zero, help="stop after that many seconds, to resume later"
    )
    part.add_argument(
        "--no-resume", action="store_true", help="do not go on with an interrupted run"
    )


def _train(arguments: Arguments) -> int:
    from quant.train import train

    if arguments.out.suffix != ".safetensors":
        raise BadInput(f"--out must end in .safetensors, not {str(arguments.out)!r}")
    checkpoint = train(
        arguments.model,
        args.dataset(arguments),
        seed=arguments.seed,
        epochs=arguments.epochs,
        threads=arguments.threads,
        out=arguments.out,
        resume=not arguments.no_resume,
        max_seconds=arguments.max_seconds,
    )
    if checkpoint.accuracy is None:
        print("stopped before the last epoch; the same command goes on")
        return 0
    print(
        f"{arguments.out}: {checkpoint.accuracy:.2%} on the test images;"
        f" {checkpoint.held_out} training images held out"
    )
    return 0


def _evaluate_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("network", type=Path, help="folder of a saved integer network")
    args.data_arguments(part)


def _evaluate(arguments: Arguments) -> int:
    from hwgen.flow.steps import integer_accuracy
    from hwgen.ir.serial import load_network

    network = load_network(arguments.network)
    data = args.dataset(arguments)
    with args.progress().spinner("evaluate"):
        accuracy = integer_accuracy(network, data)
    print(f"{accuracy:.2%} of {len(data.test_labels):,} test images")
    return 0


def _generate_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("network", type=Path, help="folder of a saved integer network")
    args.hardware_arguments(part)
    part.add_argument(
        "--out", type=Path, required=True, help="folder for the Verilog and dataflow.json"
    )


def _generate(arguments: Arguments) -> int:
    from hwgen.flow.hardware import design_of, fold_network
    from hwgen.flow.table import describe_dataflow
    from hwgen.flow.workspace import Workspace
    from hwgen.ir.serial import load_network

    options = args.hardware(arguments)
    network = load_network(arguments.network)
    progress = args.progress()
    with progress.spinner("fold"):
        dataflow = fold_network(network, options)
        workspace = Workspace(folder=arguments.out)
        workspace.json("dataflow.json", describe_dataflow(dataflow))
    with progress.spinner("generate and check Verilog"):
        design, _ = design_of(dataflow, workspace)
    show.table(
        [
            ("Verilog", str(arguments.out / "rtl" / f"{design.top}.v")),
            ("multipliers", f"{dataflow.multipliers:,}"),
            ("cycles a frame", f"{dataflow.interval:,}"),
            ("latency in cycles", f"{dataflow.latency:,}"),
        ]
    )
    return 0


def _build_arguments(part: argparse.ArgumentParser) -> None:
    args.model_arguments(part, network=True)
    args.data_arguments(part)
    args.quant_arguments(part)
    args.hardware_arguments(part)
    part.add_argument(
        "--out", type=Path, required=True, help="folder for everything that is written"
    )
    part.add_argument(
        "--images",
        type=args.natural,
        default=20,
        help="test images for Verilator; default 20, 0: none",
    )
    part.add_argument(
        "--icarus-images",
        type=args.natural,
        default=3,
        help="test images for Icarus, at most 3; default 3, 0: none",
    )
    part.add_argument("--no-synth", action="store_true", help="leave synthesis out")
    part.add_argument("--no-pnr", action="store_true", help="leave place and route out")
    part.add_argument(
        "--seed", type=args.natural, default=1, help="of gaps, stalls and placement; default 1"
    )


def _build(arguments: Arguments) -> int:
    from hwgen.flow.pipeline import BuildOptions, build, build_saved
    from hwgen.flow.report import summary_rows
    from quant.config import QuantConfig
    from sim.tools import Simulator

    if arguments.icarus_images > 3:
        raise BadInput(
            f"a build runs at most 3 images in Icarus, not {arguments.icarus_images}; 'hwgen simulate' runs more"
        )
    if arguments.network is not None:
        args.refuse_quant(arguments)
    counts = {Simulator.ICARUS: arguments.icarus_images, Simulator.VERILATOR: arguments.images}
    options = BuildOptions(
        hardware=args.hardware(arguments),
        quant=QuantConfig() if arguments.network is not None else args.quant(arguments),
        images={simulator: count for simulator, count in counts.items() if count},
        synth=not arguments.no_synth,
        pnr=not arguments.no_pnr,
        seed=arguments.seed,
    )
    data, progress = args.dataset(arguments), args.progress()
    if arguments.network is not None:
        report = build_saved(arguments.network, data, arguments.out, options, progress)
    else:
        report = build(args.model(arguments, data), data, arguments.out, options, progress)
    show.table(summary_rows(report), title=f"{report['name']} on {report['target']}")
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"written to {arguments.out}: report.md, report.json, rtl/, network/")
    return 0


def _simulate_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("build", type=Path, help="folder of a build")
    part.add_argument("--data-dir", type=Path, help="folder of the data set's files")
    part.add_argument("--images", type=args.positive, default=20, help="test images; default 20")
    part.add_argument(
        "--simulator",
        choices=("icarus", "verilator"),
        default="verilator",
        help="default verilator",
    )
    part.add_argument(
        "--gaps", type=args.share, default=0.3, help="share of cycles in which the source pauses"
    )
    part.add_argument(
        "--stalls",
        type=args.share,
        default=0.3,
        help="share of cycles in which the sink is not ready",
    )
    part.add_argument("--seed", type=args.natural, default=0, help="of the gaps and stalls")
    part.add_argument(
        "--trace", type=Path, help="waveform of the run at full rate to write, .vcd or .fst"
    )
    part.add_argument("--json", type=Path, help="also write the figures as JSON")


def _simulate(arguments: Arguments) -> int:
    from hwgen.flow.simulate import simulate_build

    args.check_file(arguments.json)
    args.check_file(arguments.trace)
    figures = simulate_build(
        arguments.build,
        data_dir=arguments.data_dir,
        images=arguments.images,
        simulator=arguments.simulator,
        gaps=arguments.gaps,
        stalls=arguments.stalls,
        seed=arguments.seed,
        trace=arguments.trace,
        progress=args.progress(),
    )
    if arguments.json is not None:
        from hwgen.files import write_json

        write_json(arguments.json, figures)
    show.table([(key.replace("_", " "), f"{value:,}") for key, value in figures.items()])
    if "cycles_measured" not in figures:
        print("note: the cycles between frames are measured with 3 images or more")
    return 0


def _synth_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("build", type=Path, help="folder of a build")
    part.add_argument("--target", help="another part than the build's")
    part.add_argument(
        "--clock-mhz", type=args.above_zero, help="clock that place and route aims for"
    )
    part.add_argument("--no-pnr", action="store_true", help="leave place and route out")
    part.add_argument("--seed", type=args.natural, default=1, help="of the placement")
    part.add_argument("--json", type=Path, help="also write the figures as JSON")


def _synth(arguments: Arguments) -> int:
    from hwgen.flow.simulate import synthesize_build

    args.check_file(arguments.json)
    figures = synthesize_build(
        arguments.build,
        target=arguments.target,
        clock_mhz=arguments.clock_mhz,
        pnr=not arguments.no_pnr,
        seed=arguments.seed,
        progress=args.progress(),
    )
    if arguments.json is not None:
        from hwgen.files import write_json

        write_json(arguments.json, figures)
    from hwgen.flow.report import summary_rows

    show.table(summary_rows(figures), title=f"{figures['name']} on {figures['target']}")
    return 0


def _explore_arguments(part: argparse.ArgumentParser) -> None:
    args.model_arguments(part)
    args.data_arguments(part)
    part.add_argument(
        "--bits", default="8,6,5,4", help="widths to sweep, with commas; default 8,6,5,4"
    )
    part.add_argument("--fps", default="1000,5000", help="frame rates to sweep; default 1000,5000")
    part.add_argument("--calibration", default="mse", help="mse (default), max or percentile")
    part.add_argument("--target", default="ecp5-85k", help="FPGA part; default ecp5-85k")
    part.add_argument(
        "--clock-mhz", type=args.above_zero, help="clock; the part's usual one by default"
    )
    part.add_argument("--pnr", action="store_true", help="place and route every point too")
    part.add_argument("--out", type=Path, required=True, help="folder for points.csv and the plot")


def _explore(arguments: Arguments) -> int:
    from hwgen.explore.sweep import sweep

    data = args.dataset(arguments)
    points = sweep(
        args.model(arguments, data),
        data,
        bits=arguments.bits.split(","),
        fps=arguments.fps.split(","),
        calibration=arguments.calibration,
        target=arguments.target,
        clock_mhz=arguments.clock_mhz,
        pnr=arguments.pnr,
        out=arguments.out,
        progress=args.progress(),
    )
    show.points_table(points)
    for point in points:
        if "reason" in point:
            print(f"{point['bits']} bits, {point['fps_target']:,.10g} frames/s: {point['reason']}")
    print(
        f"written to {arguments.out}: points.csv, points.json, accuracy-lut.png, accuracy-lut.svg"
    )
    return 0


def _nothing(part: argparse.ArgumentParser) -> None:
    """A command without arguments."""


COMMANDS: tuple[Command, ...] = (
    Command(
        name="build",
        help="Quantise, generate, simulate and synthesise a trained network; write a report.",
        arguments=_build_arguments,
        run=_build,
    ),
    Command(
        name="train", help="Train a reference network.", arguments=_train_arguments, run=_train
    ),
    Command(
        name="quantize",
        help="Turn a float network into an integer network.",
        arguments=quantize.arguments,
        run=quantize.run,
    ),
    Command(
        name="evaluate",
        help="Measure an integer network's accuracy on the test images.",
        arguments=_evaluate_arguments,
        run=_evaluate,
    ),
    Command(
        name="generate",
        help="Generate Verilog from a saved integer network.",
        arguments=_generate_arguments,
        run=_generate,
    ),
    Command(
        name="simulate",
        help="Co-simulate a build in Icarus or Verilator against the golden model.",
        arguments=_simulate_arguments,
        run=_simulate,
    ),
    Command(
        name="synth",
        help="Synthesise a build with Yosys, and place and route it with nextpnr.",
        arguments=_synth_arguments,
        run=_synth,
    ),
    Command(
        name="explore",
        help="Sweep widths and frame rates; write a table and an accuracy-against-LUT plot.",
        arguments=_explore_arguments,
        run=_explore,
    ),
    Command(
        name="doctor",
        help="Say which tools were found, their versions, and what is missing for what.",
        arguments=_nothing,
        run=_doctor,
    ),
)
"""All commands, in the order of the help."""
