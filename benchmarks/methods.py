"""Run the benchmark of the quantisation methods, cell by cell, and write its report.

What is done stays: the same command goes on where it stopped. Results are the same in every run but
for ``timing.json``. Exits with status 1 where a cell failed, 130 where it was interrupted.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from benchmarks.cells import SECTIONS  # noqa: E402
from benchmarks.cells.common import Absent, Cases, Cell, cells_of, markdown_table  # noqa: E402
from hwgen.errors import BadInput, HwgenError  # noqa: E402
from hwgen.files import ensure_folder, write_json, write_text  # noqa: E402
from hwgen.flow.progress import Shown  # noqa: E402
from hwgen.flow.workspace import digest  # noqa: E402

SCHEMA = 1

NOTED = 15.0
"""Seconds between notes of how long the running cell takes."""

NAMED = 8
"""Cells that a report names of those that were not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The cells of one method; ``broken`` says why there are none."""

    name: str
    module: ModuleType | None
    cells: tuple[Cell, ...]
    broken: str | None = None


def load_methods(quick: bool) -> list[Method]:
    """The methods' cells; those that cannot be loaded say why."""
    methods = []
    seen: dict[str, str] = {}
    for name in SECTIONS:
        if importlib.util.find_spec(f"benchmarks.cells.{name}") is None:
            methods.append(Method(name=name, module=None, cells=(), broken="it has no cells"))
            continue
        try:
            module = importlib.import_module(f"benchmarks.cells.{name}")
            cells = cells_of(name, quick)
        except Exception as error:  # one broken method must not stop the others
            reason = f"its cells cannot be loaded: {type(error).__name__}: {error}"
            methods.append(Method(name=name, module=None, cells=(), broken=reason))
            continue
        for cell in cells:
            if cell.name in seen:
                raise BadInput(f"the cell {cell.name} is in {seen[cell.name]} and in {name}")
            seen[cell.name] = name
        methods.append(Method(name=name, module=module, cells=cells))
    return methods


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The results on disk: a file a cell."""

    folder: Path
    quick: bool

    def path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def identity(self, cell: Cell) -> str:
        """Digest of what decides a cell's result besides its networks.

        The first version of a method is not in it: results from before versions were counted stay.
        """
        version = (cell.version,) if cell.version > 1 else ()
        return digest("cell", SCHEMA, cell.name, dict(cell.config), self.quick, *version)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's record if its configuration is this one's."""
        try:
            record = json.loads(self.path(cell).read_text(encoding="utf-8"))
            same = record["config"] == self.identity(cell)
            return record if same and isinstance(record["result"], dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def done(self, cell: Cell, cases: Cases) -> bool:
        """Whether there is a result of the same configuration and the same networks."""
        record = self.read(cell)
        if record is None:
            return False
        try:
            return all(cases.digest(name) == old for name, old in record["networks"].items())
        except Absent:  # it cannot be measured again here: the result stays
            return True
        except (HwgenError, KeyError, AttributeError):
            return False

    def write(self, cell: Cell, result: dict[str, Any], networks: Mapping[str, str]) -> None:
        ensure_folder(self.folder / "cells")
        record = {
            "cell": cell.name,
            "config": self.identity(cell),
            "networks": dict(sorted(networks.items())),
            "result": result,
        }
        write_json(self.path(cell), record)

    def timing(self) -> dict[str, dict[str, Any]]:
        """Every cell's seconds."""
        try:
            found: dict[str, dict[str, Any]] = json.loads(
                (self.folder / "timing.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            return {}
        return found

    def unfinished(self, cell: Cell) -> tuple[float, float]:
        """Seconds and CPU seconds that a cell took so far without coming to its result."""
        found = self.timing().get(cell.name, {})
        if found.get("unfinished") != self.identity(cell):
            return 0.0, 0.0
        return found["seconds"], found["cpu_seconds"]

    def timed(self, cell: Cell, wall: float, cpu: float, *, done: bool) -> None:
        """Note a cell's seconds in ``timing.json``; processes take turns."""
        with _locked(ensure_folder(self.folder / "cells")):
            seconds = self.timing()
            seconds[cell.name] = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
            if not done:
                seconds[cell.name]["unfinished"] = self.identity(cell)
            write_json(self.folder / "timing.json", dict(sorted(seconds.items())))


class Clock:
    """Counts a cell's seconds, those of its unfinished runs included, whatever ends this run.

    A search goes on where it was stopped: only together its runs say how long it takes.
    """

    def __init__(self, store: Store, cell: Cell) -> None:
        self._store, self._cell = store, cell
        self._before = store.unfinished(cell)
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)

    def __enter__(self) -> Clock:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is None or not issubclass(kind, Absent):
            self._store.timed(self._cell, *self.seconds, done=kind is None)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of all runs, and of the processor."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return self._before[0] + wall, self._before[1] + cpu

    def _note(self) -> None:
        while not self._over.wait(NOTED):  # a killed process loses no more
            self._store.timed(self._cell, *self.seconds, done=False)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name has all patterns in it."""
    return all(re.search(pattern, name) for pattern in patterns)


def run_processes(methods: Sequence[Method], argv: Sequence[str], jobs: int) -> list[str]:
    """Run each method's cells in a process of its own, ``jobs`` at a time; the failures.

    Cells of one method may share files and keep their order. Hardware is built of what the others
    made, and so comes last.
    """

    def run_method(method: Method) -> int:
        command = [sys.executable, __file__, *argv, "--jobs", "1", "--only", f"^{method.name}-"]
        return subprocess.run(command, check=False).returncode

    methods = sorted(methods, key=lambda method: method.name == SECTIONS[-1])
    last = sum(method.name != SECTIONS[-1] for method in methods)
    codes: list[int] = []
    for part in (methods[:last], methods[last:]):
        executor = ThreadPoolExecutor(jobs)
        try:
            codes += executor.map(run_method, part)
        finally:
            executor.shutdown(cancel_futures=True)
        if 130 in codes:
            raise KeyboardInterrupt
    pairs = zip(methods, codes, strict=True)
    return [f"{method.name}: status {code}, see above" for method, code in pairs if code]


def run_cells(
    methods: Sequence[Method], store: Store, cases: Cases, only: Sequence[str], console: Console
) -> list[str]:
    """Run what is not done yet; the failures, a line each."""
    wanted = [cell for method in methods for cell in method.cells if matches(cell.name, only)]
    todo = [cell for cell in wanted if not store.done(cell, cases)]
    console.print(f"{len(todo)} of {len(wanted)} cells to run", highlight=False)
    failures = []
    for number, cell in enumerate(todo, 1):
        console.print(f"[{number}/{len(todo)}] {cell.name} ...", highlight=False, markup=False)
        clock = Clock(store, cell)
        cases.begin(cell)
        try:
            with clock:
                store.write(cell, cell.run(cases), cases.used)
        except Absent as error:
            console.print(f"left out: {error}", highlight=False, markup=False)
            continue
        except Exception as error:  # the other cells go on; all failures are told at the end
            failures.append(f"{cell.name}: {type(error).__name__}: {error}")
            console.print(f"failed: {failures[-1]}", highlight=False, markup=False)
            if not isinstance(error, HwgenError):
                console.print_exception(max_frames=8)
            continue
        console.print(f"done in {clock.seconds[0]:.1f} s", highlight=False)
    return failures


HEAD = """# Results of the quantisation methods

Written by `python benchmarks/methods.py{options}`; the figures are those of `cells/*.json`. Search
images choose, test images are looked at once, when all is chosen. Accuracies are top-1; drops are in
percentage points. `timing.json` has the seconds of each cell, those before an interruption included.
"""


def write_report(methods: Sequence[Method], store: Store, cases: Cases) -> list[str]:
    """Write ``README.md`` and the plots from what is done; the sections that failed."""
    options = " --quick" if store.quick else ""
    parts, failures, networks = [], [], {}
    for method in methods:
        parts.append(f"## {method.name}")
        if method.module is None:
            parts.append(f"Nothing to show: {method.broken}.")
            continue
        records = {cell.name: store.read(cell) for cell in method.cells}
        missing = [name for name, record in records.items() if record is None]
        results = {name: record["result"] for name, record in records.items() if record}
        for record in records.values():
            networks |= {} if record is None else record["networks"]
        if results:
            try:
                parts.append(method.module.report(results, store.folder).strip())
            except Exception as error:  # a partial report may lack what a table needs
                failures.append(f"report of {method.name}: {type(error).__name__}: {error}")
                parts.append(f"{len(results)} cells are done; no table can be made of them yet.")
        if missing:
            named = ", ".join(missing[:NAMED]) + (" and more" if len(missing) > NAMED else "")
            parts.append(f"Not run yet, {len(missing)} of {len(records)}: {named}.")
    rows = [(name, cases.origin(sha), f"`{sha[:16]}`") for name, sha in sorted(networks.items())]
    head = [HEAD.format(options=options).strip()]
    if rows:
        head.append(markdown_table(("network", "weights", "sha256 begins with"), rows))
    write_text(store.folder / "README.md", "\n\n".join([*head, *parts]) + "\n")
    return failures


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of results and report")
    parser.add_argument("--data-dir-cifar10", type=Path, help="folder of CIFAR-10's files")
    parser.add_argument("--data-dir-mnist", type=Path, help="folder of MNIST's files")
    parser.add_argument(
        "--models", type=Path, help="folder of the reference networks; else the shipped ones"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for unfinished searches and networks that cells share; default OUT/work",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small networks on the embedded digits, in minutes"
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="run only cells whose name it matches; may be repeated, then all must match",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="methods that run at once, each in a process; default 1"
    )
    parser.add_argument("--list", action="store_true", help="list the cells and what is done")
    parser.add_argument("--report-only", action="store_true", help="run nothing, only report")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch; default 1")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = arguments(argv)
    console = Console(stderr=True)
    try:
        return _main(options, argv, console)
    except HwgenError as error:
        console.print(f"error: {error}", highlight=False, markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on with what is finished")
        return 130


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch's threads: sums in another order give other last digits in training."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _main(options: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    for pattern in options.only:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadInput(f"--only must be a regular expression: {error}") from error
    if options.jobs < 1 or options.threads < 1:
        raise BadInput("--jobs and --threads must be at least 1")
    folders = {"cifar10": options.data_dir_cifar10, "mnist": options.data_dir_mnist}
    methods = load_methods(options.quick)
    store = Store(folder=ensure_folder(options.out), quick=options.quick)
    cases = Cases(
        options.work or options.out / "work",
        data_dirs={name: folder for name, folder in folders.items() if folder is not None},
        models=options.models,
        quick=options.quick,
        progress=Shown(console),
    )
    if options.list:
        for cell in (cell for method in methods for cell in method.cells):
            print(f"{'done' if store.done(cell, cases) else '    '} {cell.name}")
        return 0
    failures = [
        f"{method.name}: {method.broken}"
        for method in methods
        if method.broken and matches(f"{method.name}-", options.only)
    ]
    if not options.report_only and options.jobs > 1:
        chosen = [m for m in methods if any(matches(c.name, options.only) for c in m.cells)]
        failures += run_processes(chosen, argv, options.jobs)
    elif not options.report_only:
        with _threads(options.threads):
            failures += run_cells(methods, store, cases, options.only, console)
    failures += write_report(methods, store, cases)
    for failure in failures:
        console.print(f"failed: {failure}", highlight=False, markup=False)
    console.print(f"written to {store.folder}: README.md", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
