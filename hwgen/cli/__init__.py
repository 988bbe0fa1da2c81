"""The command line: ``hwgen COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hwgen import __version__
from hwgen.cli import commands
from hwgen.errors import HwgenError, Mismatch

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="hwgen",
        description="Trained convolutional networks become verified FPGA hardware.",
        epilog="'hwgen COMMAND --help' tells a command's options.",
    )
    top.add_argument("--version", action="version", version=f"hwgen {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND")
    for command in commands.COMMANDS:
        part = subparsers.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(part)
        part.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        0; 1 where a check failed; 2 for bad input, with one message on standard error; 130 when interrupted.
    """
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command is None:
        top.print_help()
        return 0
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except HwgenError as error:
        print(f"hwgen {arguments.command}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Mismatch) else 2
    except KeyboardInterrupt:
        print(
            f"hwgen {arguments.command}: interrupted; the same command goes on with what is finished",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # The reader of our output is gone: point it to nowhere, so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(
            f"hwgen {arguments.command}: error: {error}; check the path and the free space",
            file=sys.stderr,
        )
        return 2
    return status
