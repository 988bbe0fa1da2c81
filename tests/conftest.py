"""Settings of the whole suite: seeds, threads, caches, and what absent things lead to."""

from __future__ import annotations

import os

# Before NumPy and torch are imported: the tests run in several processes of one thread each.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import fcntl  # noqa: E402
import random  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Generator, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from hwgen.errors import MissingTool  # noqa: E402
from tests.support import CI, NO_DATA, NO_TOOL, shared_path  # noqa: E402

SEED = 20240229

# The same examples in every run; pytest --hypothesis-profile=search looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # libraries draw from the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of the caches of this run: one for all its processes, empty when the run starts."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the folder that the workers' own folders are in
    folder = base / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """Folder with ``cifar-10-batches-bin/``, unpacked from the shared data outside the project.

    It stays for the next run: the script writes only what is missing or wrong. The lock keeps the
    processes of a run from unpacking at once.
    """
    script = shared_path("data/cifar10/prepare.py")
    folder = Path(tempfile.gettempdir()) / f"hwgen-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that ends because a tool is absent counts as skipped at a desk; in CI it fails."""
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(MissingTool) and not CI:
        report.outcome = "skipped"
        path, line, _ = report.location
        report.longrepr = (path, (line or 0) + 1, f"{NO_TOOL}{call.excinfo.value}")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skipped tests by their kind of reason."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        text = text.removeprefix("Skipped: ")
        kinds = {NO_DATA: "shared data (HWGEN_SHARED)", NO_TOOL: "a tool"}
        absent = (kind for prefix, kind in kinds.items() if text.startswith(prefix))
        counts[next(absent, "another reason")] += 1
    for kind, count in sorted(counts.items()):
        reason = "for another reason" if kind == "another reason" else f"for lack of {kind}"
        terminalreporter.write_line(f"{count} skipped {reason}", yellow=True)
