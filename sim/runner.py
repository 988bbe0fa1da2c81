"""Build a simulator of a design and run benches in it, in child processes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cocotb_tools.config

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput, ToolFailed
from sim.bench import BENCH, bench_text
from sim.build import Trace, compile_bench, identity, last_lines
from sim.cache import BuildCache, default_cache
from sim.tools import Simulator, cocotb_libraries, find_icarus, find_libpython_path

__all__ = ["Built", "build_simulation"]

FORMAT = 1
"""Changes when the contents of a cache entry do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A simulator of a design, ready to run; made by :func:`build_simulation`.

    Parameters
    ----------
    design : Design
    simulator : Simulator
    trace : Trace
        The kind of waveform file it can write.
    probes : bool
        Whether it records the design's internal streams.
    key : str
        Name of the cache entry.
    cache : BuildCache
    jobs : int
        C++ compilations at a time.
    seconds : float
        What building took; 0 where the cache had it.
    """

    design: Design
    simulator: Simulator
    trace: Trace
    probes: bool
    key: str
    cache: BuildCache
    jobs: int
    seconds: float = 0.0

    def build(self, entry: Path) -> None:
        """Fill the cache entry."""
        compile_bench(
            _bench(self.design, self.simulator, self.probes),
            self.design.verilog,
            self.simulator,
            trace=self.trace,
            cache=self.cache,
            jobs=self.jobs,
            into=entry,
        )

    def run(
        self,
        job: Path,
        *,
        poll: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Run the bench in the folder ``job``, which holds ``job.json`` and ``stimulus.bin``.

        Parameters
        ----------
        job : Path
        poll : callable, optional
            Called about twice a second meanwhile.
        timeout : float, optional
            Seconds of wall-clock time.

        Raises
        ------
        ToolFailed
            If the simulator or the bench fails, or does not end in time; ``job/log.txt`` holds its
            output.
        """
        with self.cache.hold(self.key, self.build) as entry, (job / "log.txt").open("wb") as log:
            child = subprocess.Popen(
                self._command(entry),
                cwd=job,
                env=_environment(self.simulator),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                in_time = _wait(child, poll, timeout)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if not (job / "result.json").is_file():
            fault = f"failed with status {child.returncode}"
            if not in_time:
                fault = f"did not end in {timeout:g} seconds"
            text = last_lines((job / "log.txt").read_text(errors="replace"))
            raise ToolFailed(
                f"the simulation in {self.simulator.value} {fault}; its last lines:\n{text}"
            )

    def _command(self, entry: Path) -> list[str]:
        if self.simulator is Simulator.VERILATOR:
            command = [str(entry / "sim")]
            if self.trace is not Trace.NONE:
                command += ["--trace", "--trace-file", f"trace{self.trace.value}"]
            return command
        formats = {
            Trace.NONE: ["-none"],
            Trace.VCD: ["-vcd", "+hwgen_trace=trace.vcd"],
            Trace.FST: ["-fst", "+hwgen_trace=trace.fst"],
        }
        return [
            *(str(find_icarus().path.with_name("vvp")), "-n"),
            *("-m", str(cocotb_tools.config.lib_name_path("vpi", "icarus"))),
            *(str(entry / "sim.vvp"), *formats[self.trace]),
        ]


def build_simulation(
    design: Design,
    simulator: Simulator,
    *,
    trace: Trace = Trace.NONE,
    probes: bool = False,
    cache_dir: Path | None = None,
    jobs: int = 2,
) -> Built:
    """Build a simulator of ``design``, or find it in the cache.

    Parameters
    ----------
    design : Design
    simulator : Simulator
    trace : Trace
        Kind of waveform file that the simulator shall be able to write.
    probes : bool
        Record the design's internal streams (slower).
    cache_dir : Path, optional
        Folder of the build cache, :func:`~sim.cache.default_cache` unless given.
    jobs : int
        C++ compilations at a time.

    Raises
    ------
    MissingTool
        If a program it needs is not installed.
    ToolFailed
        If the simulator refuses the design.
    BadInput
        If the cache folder cannot be written.
    """
    if design.top == BENCH:
        raise BadInput(
            f"the top module must not be named '{BENCH}', which is the test bench; rename it"
        )
    find_libpython_path()
    contents = [
        str(FORMAT),
        design.verilog,
        _bench(design, simulator, probes),
        *identity(simulator, trace),
    ]
    built = Built(
        design=design,
        simulator=simulator,
        trace=trace,
        probes=probes,
        key=hashlib.sha256("\0".join(contents).encode()).hexdigest()[:40],
        cache=BuildCache(cache_dir if cache_dir is not None else default_cache()),
        jobs=jobs,
    )
    seconds = 0.0

    def build(entry: Path) -> None:
        nonlocal seconds
        started = time.monotonic()
        built.build(entry)
        seconds = time.monotonic() - started

    with built.cache.hold(built.key, build):
        return replace(built, seconds=seconds)


def _bench(design: Design, simulator: Simulator, probes: bool) -> str:
    return bench_text(design, probes=probes, dump=simulator is Simulator.ICARUS)


def _environment(simulator: Simulator) -> dict[str, str]:
    """Environment of the child process; settings of other cocotb runs do not leak in."""
    foreign = ("COCOTB_", "GPI_", "PYGPI_", "PYTEST_", "COVERAGE", "VERILATOR")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    paths.append(str(Path(__file__).absolute().parent.parent))
    libraries = [str(cocotb_libraries()), env.get("LD_LIBRARY_PATH", "")]
    return env | {
        "COCOTB_TOPLEVEL": BENCH,
        "COCOTB_TEST_MODULES": "sim.benches",
        "COCOTB_RESULTS_FILE": "results.xml",
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_ANSI_OUTPUT": "0",
        # Without it cocotb loads pytest and all its plug-ins to rewrite assertions.
        "COCOTB_REWRITE_ASSERTION_FILES": "",
        "COCOTB_RANDOM_SEED": "0",
        "COCOTB_TRUST_INERTIAL_WRITES": str(int(simulator is Simulator.VERILATOR)),
        # Lanes beyond a pixel's last channel may be unknown; the monitor sees what matters.
        "COCOTB_RESOLVE_X": "zeros",
        "TOPLEVEL_LANG": "verilog",
        "GPI_USERS": f"{find_libpython_path()};{cocotb_tools.config.pygpi_entry_point()}",
        "GPI_LOG_LEVEL": "WARNING",
        "PYGPI_PYTHON_BIN": sys.executable,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }


def _wait(
    child: subprocess.Popen[bytes], poll: Callable[[], None] | None, timeout: float | None
) -> bool:
    """Wait for the child, calling ``poll``; whether it ended before the time was over."""
    end = time.monotonic() + timeout if timeout is not None else None
    while True:
        try:
            child.wait(timeout=0.5)
            return True
        except subprocess.TimeoutExpired:
            if end is not None and time.monotonic() > end:
                return False
        if poll is not None:
            poll()
