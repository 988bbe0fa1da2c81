"""Arguments that several commands share, and what they load."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwgen.errors import BadInput

if TYPE_CHECKING:
    from hwgen.flow.model import Model
    from hwgen.flow.options import HardwareOptions
    from hwgen.flow.progress import Shown
    from quant.config import QuantConfig
    from quant.data.dataset import Dataset

__all__ = [
    "above_zero",
    "amount",
    "baseline_arguments",
    "check_file",
    "data_arguments",
    "dataset",
    "hardware",
    "hardware_arguments",
    "listed",
    "model",
    "model_arguments",
    "natural",
    "positive",
    "progress",
    "quant",
    "quant_arguments",
    "refuse_quant",
    "share",
]

Arguments = argparse.Namespace


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def progress() -> Shown:
    from rich.console import Console

    from hwgen.flow.progress import Shown

    return Shown(Console(stderr=True))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(
            f"must be at least 0 and below 1, not {text!r}; 0.01 is 1 %"
        )
    return value


def check_file(path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work that would be lost.

    Raises
    ------
    BadInput
        If it is a folder, or its folder is not there or cannot be written.
    """
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise BadInput(f"{path} is a folder; give the name of a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "cannot be written" if folder.is_dir() else "is not there"
        raise BadInput(f"the folder {folder} for {path.name} {what}; give another file")


def data_arguments(part: argparse.ArgumentParser, *, required: bool = True) -> None:
    part.add_argument("--data", required=required, help="data set: digits, mnist or cifar10")
    part.add_argument(
        "--data-dir",
        type=Path,
        help="folder with the official files (idx files, or cifar-10-batches-bin/); else cache or download",
    )


def model_arguments(part: argparse.ArgumentParser, *, network: bool = False) -> None:
    """``--model`` and ``--preprocess``; with ``network`` an integer network in the model's place."""
    source: Any = part
    if network:
        source = part.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "--network",
            type=Path,
            help="folder of a saved integer network, such as hwgen quantize writes, instead of a model",
        )
    source.add_argument(
        "--model",
        required=not network,
        help="lenet5, digits-tiny, or an .onnx, .safetensors or .pt file (allcnn: train it first)",
    )
    part.add_argument(
        "--preprocess",
        help="how pixels become the network's input: standard ((p/255-0.5)/0.25), unit (p/255), raw, or"
        " SCALE,OFFSET; the checkpoint's own by default, standard for ONNX",
    )


def quant_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--bits", help="bits of weights and activations, or W/B/A; default 8")
    baseline_arguments(part)


def baseline_arguments(part: Any) -> None:
    """What the baseline has besides ``--bits``; ``part`` is a parser or a group of its arguments."""
    part.add_argument(
        "--layer-bits",
        action="append",
        metavar="LAYER=BITS",
        help="bits of one layer, N or W/B/A; may be repeated",
    )
    part.add_argument(
        "--calibration",
        help="how ranges are found: mse (default), max or percentile",
    )


def hardware_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--target", default="ecp5-85k", help="FPGA part; default ecp5-85k")
    goal = part.add_mutually_exclusive_group()
    goal.add_argument("--fps", type=above_zero, help="frames a second at the clock; default 1000")
    goal.add_argument("--cycles", type=positive, help="cycles a frame, instead of --fps")
    goal.add_argument("--multipliers", type=positive, help="most multipliers, instead of --fps")
    part.add_argument("--clock-mhz", type=above_zero, help="clock; the part's usual one by default")
    part.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="LAYER=INxOUT",
        help="fix a layer's lanes; may be repeated",
    )
    part.add_argument(
        "--argmax", action="store_true", help="deliver the class instead of the outputs"
    )


def dataset(arguments: Arguments) -> Dataset:
    from quant.datasets import load_dataset

    if arguments.data == "digits" and arguments.data_dir is not None:
        raise BadInput("--data digits needs no files; leave --data-dir out")
    return load_dataset(arguments.data, data_dir=arguments.data_dir)


def model(arguments: Arguments, data: Dataset) -> Model:
    from hwgen.flow.model import load_model

    return load_model(arguments.model, data=data, preprocess=arguments.preprocess)


def quant(arguments: Arguments) -> QuantConfig:
    from hwgen.flow.options import quant_config

    return quant_config(
        arguments.bits or "8",
        arguments.layer_bits or (),
        calibration=arguments.calibration or "mse",
    )


def refuse_quant(arguments: Arguments) -> None:
    """Refuse options of quantisation where the network is an integer network already.

    Raises
    ------
    BadInput
    """
    for name in ("preprocess", "bits", "layer_bits", "calibration"):
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(
                f"{option} quantises a float network, and --network gives an integer network; leave"
                f" {option} out"
            )


def hardware(arguments: Arguments) -> HardwareOptions:
    from hwgen.flow.options import HardwareOptions, parse_pins

    return HardwareOptions.of(
        arguments.target,
        clock_mhz=arguments.clock_mhz,
        fps=arguments.fps,
        cycles=arguments.cycles,
        multipliers=arguments.multipliers,
        pins=parse_pins(arguments.pin),
        argmax=arguments.argmax,
    )
