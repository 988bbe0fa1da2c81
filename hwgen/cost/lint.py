"""Verilator's lint over emitted Verilog."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hwgen.errors import Mismatch, ToolFailed
from hwgen.verilator import locate
from rtl.emit import LINT_WAIVERS

__all__ = ["lint"]

_WARNING = re.compile(r"^%(?:Warning|Error)(?:-(\w+))?: (.*)$", re.MULTILINE)
_SHOWN = 5


def lint(
    verilog: str, top: str, *, waivers: Mapping[str, str] = LINT_WAIVERS, timeout: float = 600.0
) -> None:
    """Check a design with ``verilator --lint-only -Wall``, read as Verilog-2001.

    Parameters
    ----------
    verilog : str
        The design's text.
    top : str
        Name of its top module.
    waivers : mapping of str to str
        Rules not to report, each with its reason.
    timeout : float
        Seconds.

    Raises
    ------
    Mismatch
        If a rule outside the waivers is broken: the first warnings, each with rule, line and text.
    MissingTool
        If Verilator or any of the Perl it needs is not installed.
    ToolFailed
        If Verilator cannot be run.
    """
    verilator = locate()
    with tempfile.TemporaryDirectory(prefix="hwgen-lint-") as folder:
        (Path(folder) / f"{top}.v").write_text(verilog, encoding="utf-8")
        arguments = (
            *("--lint-only", "-Wall", "-Wno-fatal", "--default-language", "1364-2001"),
            *("--top-module", top),
            *(f"-Wno-{rule}" for rule in sorted(waivers)),
            f"{top}.v",
        )
        try:
            done = verilator.run(arguments, timeout=timeout, folder=Path(folder))
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolFailed(f"verilator --lint-only cannot be run: {error}") from error
    output = done.stdout + done.stderr
    warnings = _WARNING.findall(output)
    if warnings:
        shown = "\n".join(f"  {rule or 'error'}: {text}" for rule, text in warnings[:_SHOWN])
        more = len(warnings) - _SHOWN
        rest = f"\n  and {more} more" if more > 0 else ""
        raise Mismatch(f"verilator --lint-only -Wall objects to {top}.v:\n{shown}{rest}")
    if done.returncode != 0:
        lines = "\n".join(output.strip().splitlines()[-_SHOWN:])
        raise ToolFailed(f"verilator --lint-only ended with status {done.returncode}:\n{lines}")
