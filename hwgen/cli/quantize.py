"""``hwgen quantize``: the options of each method, one run, and what is said of the result."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwgen.cli import args, show
from hwgen.cli.idle import idle_flags, refuse_idle
from hwgen.cli.quantize_flags import FLAGS, STUDY
from hwgen.errors import BadInput

if TYPE_CHECKING:
    from quant.config import QuantConfig
    from quant.methods.result import Result

__all__ = ["arguments", "check", "run"]

Arguments = argparse.Namespace

METHODS: Mapping[str, str] = {
    "linear": "uniform, a power-of-two scale for each tensor; nothing is searched",
    "adaptive": "an evolution strategy moves each tensor's clip bounds or all its levels",
    "layerwise": "each layer's widths go down while the accuracy allows",
    "evolve": "NSGA-II over widths and channels of each layer, with fine-tuning",
    "cluster": "pruning, then weights that share values, found by a particle swarm and K-means",
    "accumulator": "the formats that fill an accumulator of a given width",
}

LINEAR = ("layer_bits", "calibration")
"""Options of the baseline alone."""

WIDTH = ("adaptive", "cluster")
"""Methods for which ``--bits`` is one width, that of the weights as they are stored."""


def arguments(part: argparse.ArgumentParser) -> None:
    """Add the options."""
    args.model_arguments(part)
    args.data_arguments(part)
    part.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="linear",
        help="how to quantise, see below; default linear",
    )
    part.add_argument(
        "--bits",
        help="linear: bits of weights and activations, or W/B/A, default 8; adaptive and cluster: bits of"
        " a weight as it is stored, default 4",
    )
    part.add_argument("--seed", type=args.natural, default=0, help="of all chance; default 0")
    part.add_argument(
        "--search-images",
        type=args.positive,
        metavar="N",
        help="held-out training images that choose; all by default",
    )
    part.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with an interrupted search, the default, or forget it",
    )
    part.add_argument(
        "--out", type=Path, required=True, help="folder for network.json, weights.npz, method.json"
    )
    part.add_argument("--onnx", type=Path, help="also write the integer network as ONNX")
    groups: dict[tuple[str, ...], Any] = {
        (method,): part.add_argument_group(method, text) for method, text in METHODS.items()
    }
    args.baseline_arguments(groups["linear",])
    for flag in (*FLAGS, STUDY):
        if flag.methods not in groups:
            groups[flag.methods] = part.add_argument_group(", ".join(flag.methods))
        groups[flag.methods].add_argument(flag.name, dest=flag.dest, default=None, **flag.settings)


def run(arguments: Arguments) -> int:
    """Quantise, save, and print what was reached.

    Returns
    -------
    int
        0; 1 where a limit that was asked for is not met: the network is saved nevertheless. A drop
        that is kept on the search images and not on the test images is no failure, as nothing may
        choose by the test images: it is said.
    """
    from hwgen.flow.methods import (
        SAVED,
        drop_note,
        limit_message,
        pruning_note,
        quantize_by,
        result_rows,
        splits_of,
    )

    method = arguments.method
    _check_onnx(arguments.onnx, arguments.out)
    config, options = check(arguments)
    data = args.dataset(arguments)
    model = args.model(arguments, data)
    splits = splits_of(model, data, arguments.search_images)
    state, storage = _places(arguments)
    result = quantize_by(
        method,
        model,
        splits,
        options=options,
        config=config,
        seed=arguments.seed,
        progress=args.progress(),
        state=state,
        storage=storage,
    )
    _save(result, arguments.out)
    if state is not None and method != "evolve":  # a study may be asked for more
        state.unlink(missing_ok=True)
    if arguments.onnx is not None:
        from quant.export_onnx import export_onnx

        export_onnx(result.network, arguments.onnx)
    show.table(
        result_rows(result),
        title=f"{result.network.name}, {method}",
        header=("", "search images", "test images"),
        caption=SAVED,
    )
    print(f"written to {arguments.out}: network.json, weights.npz, method.json")
    for note in (pruning_note(result), drop_note(result)):
        if note is not None:
            print(f"hwgen quantize: note: {note}", file=sys.stderr)
    message = limit_message(result)
    if message is not None:
        print(f"hwgen quantize: {message}; the best network is in {arguments.out}", file=sys.stderr)
        return 1
    return 0


def _check_onnx(path: Path | None, out: Path) -> None:
    """Refuse an ONNX file that cannot be written; one in the output folder may come before it.

    Raises
    ------
    BadInput
    """
    if path is None:
        return
    if path.resolve() == out.resolve():
        raise BadInput(f"--onnx and --out are both {out}; give --onnx the name of a file, net.onnx")
    if path.parent.resolve() != out.resolve() or path.is_dir():
        args.check_file(path)
    elif path.suffix != ".onnx":
        raise BadInput(f"{path} lies among the files of the network; name it .onnx")


def check(arguments: Arguments) -> tuple[QuantConfig | None, Any]:
    """The baseline's configuration, or the options of a method that searches.

    Raises
    ------
    BadInput
        If a value is not allowed, or an option is another method's or changes nothing.
    """
    _refuse_others(arguments)
    if arguments.method == "linear":
        return args.quant(arguments), None
    return None, _options(arguments)


def _refuse_others(arguments: Arguments) -> None:
    """Refuse options of other methods.

    Raises
    ------
    BadInput
    """
    method = arguments.method
    for flag in (*FLAGS, STUDY):
        if getattr(arguments, flag.dest) is not None and method not in flag.methods:
            raise _foreign(flag.name, flag.methods, method)
    for dest in LINEAR:
        if getattr(arguments, dest) is not None and method != "linear":
            raise _foreign(f"--{dest.replace('_', '-')}", ("linear",), method)
    if arguments.bits is not None and method not in ("linear", *WIDTH):
        if method == "accumulator":
            raise BadInput(
                "the width of accumulators is --accumulator-bits; give it instead of --bits"
            )
        raise _foreign("--bits", ("linear", *WIDTH), method)


def _foreign(name: str, methods: tuple[str, ...], method: str) -> BadInput:
    return BadInput(
        f"{name} is an option of --method {args.listed(methods)}, not of {method}; leave it out or"
        f" give --method {methods[0]}"
    )


def _options(arguments: Arguments) -> Any:
    """The options of a method that searches, the method's own defaults where none are given.

    Raises
    ------
    BadInput
        If a value is not allowed.
    """
    from hwgen.flow.methods import make_options

    method = arguments.method
    given = {
        flag.target: getattr(arguments, flag.dest)
        for flag in FLAGS
        if method in flag.methods and getattr(arguments, flag.dest) is not None
    }
    if arguments.bits is not None:
        if not arguments.bits.isdecimal():
            raise BadInput(
                f"--bits must be one width with --method {method}, not {arguments.bits!r}; activations"
                " have --activation-bits"
            )
        given["bits"] = int(arguments.bits)
    # Idle options first, in the words of the command line: the method may refuse them in its own.
    idle = {flag.target for flag in FLAGS if flag.name in idle_flags(method)}
    plain = {target: value for target, value in given.items() if target not in idle}
    refuse_idle(arguments, method, make_options(method, plain))
    return make_options(method, given)


def _places(arguments: Arguments) -> tuple[Path | None, str | None]:
    """The file of an unfinished search or of a study, and the URL of a study in a database.

    Raises
    ------
    BadInput
        If the output folder is a file or cannot be written.
    """
    from hwgen.files import ensure_folder

    out: Path = arguments.out.resolve()
    ensure_folder(out.parent)
    if out.exists() and not (out.is_dir() and os.access(out, os.W_OK)):
        raise BadInput(f"{arguments.out} must be a folder that can be written; give another --out")
    if arguments.method == "linear":
        return None, None
    suffix = ".study.db" if arguments.method == "evolve" else ".search.npz"
    state = out.with_name(out.name + suffix)
    if arguments.study is not None:
        if not arguments.resume:
            raise BadInput("--no-resume does not empty a --study; name a new one")
        if "://" in arguments.study:
            return None, arguments.study
        return Path(arguments.study), None
    if not arguments.resume:
        state.unlink(missing_ok=True)
    return state, None


def _save(result: Result, out: Path) -> None:
    """Write the network first, then the figures with the digest of the network that they are of."""
    from hwgen.files import write_json
    from hwgen.flow.methods import METHOD_FILE, network_digest, result_table
    from hwgen.ir.serial import save_network

    save_network(result.network, out)
    write_json(out / METHOD_FILE, {"network": network_digest(out), **result_table(result)})
