"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hwgen import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="hwgen", description="Quantised networks to hardware.")
    parser.add_argument("--version", action="version", version=f"hwgen {__version__}")
    parser.parse_args(argv)
    parser.print_help()
    return 0
