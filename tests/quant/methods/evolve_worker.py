"""A worker of the small search of ``test_evolve_study.py`` in a process of its own.

Run as ``python -m tests.quant.methods.evolve_worker STUDY OUT [HANG]``: works on the study and
writes the record to OUT; as the worker that trains candidate HANG it makes ``OUT.hangs`` and waits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from quant.methods.evolve_individual import Individual
from tests.quant.methods.evolve_case import objectives, search

if __name__ == "__main__":
    torch.set_num_threads(1)
    study, out = Path(sys.argv[1]), Path(sys.argv[2])
    hang = int(sys.argv[3]) if len(sys.argv) > 3 else None
    trained: list[Individual] = []

    def maybe_hang(candidate: Individual) -> None:
        trained.append(candidate)
        if len(trained) - 1 == hang:
            out.with_suffix(".hangs").touch()
            time.sleep(600)

    result = search(state=study, objectives=objectives(maybe_hang))
    out.write_text(json.dumps(result.table()))
