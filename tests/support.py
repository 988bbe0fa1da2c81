"""What tests need that may be absent, and what is then done."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
"""Whether this is a run where every tool must be there."""

NO_DATA = "shared data absent: "
NO_TOOL = "tool absent: "


def without_tool(reason: str) -> None:
    """Skip the test at a desk, fail it in CI.

    Parameters
    ----------
    reason : str
        What is missing and how to get it.
    """
    if CI:
        pytest.fail(f"{NO_TOOL}{reason}", pytrace=False)
    pytest.skip(f"{NO_TOOL}{reason}")


def require_tool(*names: str) -> None:
    """Go on only if each program or Python package of these names is there.

    Parameters
    ----------
    *names : str
        Programs such as ``"iverilog"``, or packages such as ``"pyosys"``.
    """
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [
        name
        for name in names
        if shutil.which(name, path=folders) is None
        and not (name.isidentifier() and importlib.util.find_spec(name))
    ]
    if missing:
        without_tool(f"{', '.join(missing)}; run make setup, which installs it or says how")


def shared_path(name: str) -> Path:
    """Return a file or folder of the shared data, or skip the test where it is absent.

    Parameters
    ----------
    name : str
        Path below the folder that the variable ``HWGEN_SHARED`` names, such as ``"data/mnist"``.
    """
    base = os.environ.get("HWGEN_SHARED", "")
    if not base:
        pytest.skip(f"{NO_DATA}set HWGEN_SHARED to the folder that holds {name.split('/')[0]}/")
    path = Path(base) / name
    if not path.exists():
        pytest.skip(f"{NO_DATA}HWGEN_SHARED has no {name}")
    return path
