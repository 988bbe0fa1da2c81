"""Compile a design and the bench around it with Icarus Verilog or Verilator."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import cocotb_tools.config

from hwgen.errors import BadInput, ToolFailed
from sim.bench import BENCH
from sim.cache import BuildCache
from sim.scratch import scratch
from sim.tools import (
    Simulator,
    cocotb_libraries,
    find_compiler,
    find_fst_headers,
    find_icarus,
    find_make,
    find_verilator,
)

__all__ = ["Trace", "compile_bench", "identity", "last_lines", "run_tool"]

# Lint is checked elsewhere. The bench makes public what cocotb needs; Verilator may optimise all
# else away.
VERILATOR_FLAGS = (
    *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "--no-assert"),
    "-Wno-lint",
)

# OPT_SLOW is code that runs once: for most of it, setting up the contents of memories.
MAKE_FLAGS = ("OPT_FAST=-O2", "OPT_GLOBAL=-O2", "OPT_SLOW=-O0")


class Trace(Enum):
    """Kinds of waveform files; the value is the file's suffix."""

    NONE = ""
    VCD = ".vcd"
    FST = ".fst"

    @classmethod
    def of(cls, path: Path | None) -> Trace:
        """The kind that a file's name asks for.

        Raises
        ------
        BadInput
            If the suffix is neither ``.vcd`` nor ``.fst``.
        """
        if path is None:
            return cls.NONE
        for kind in (cls.VCD, cls.FST):
            if path.suffix == kind.value:
                return kind
        raise BadInput(f"a trace file's name must end in .vcd or .fst, not '{path.name}'")


def last_lines(text: str, lines: int = 20) -> str:
    """The last lines of what a tool printed, long ones cut."""
    return "\n".join(line[:400] for line in text.strip().splitlines()[-lines:])


def run_tool(
    command: Sequence[str], *, cwd: Path, what: str, env: dict[str, str] | None = None
) -> None:
    """Run a program to its end.

    Raises
    ------
    ToolFailed
        If it exits with a status other than 0; the message holds its last lines.
    """
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        text = last_lines(done.stdout.decode(errors="replace"))
        raise ToolFailed(f"{what} failed with status {done.returncode}; its last lines:\n{text}")


def identity(simulator: Simulator, trace: Trace) -> list[str]:
    """All but the Verilog text that decides what a build holds.

    Raises
    ------
    MissingTool
        If a program that the build needs is absent.
    """
    if simulator is Simulator.ICARUS:  # the trace's format is a run-time option there
        tool = find_icarus()
        return ["icarus", str(tool.path), tool.version]
    tool, compiler = find_verilator(), find_compiler()
    find_make()
    return [
        "verilator",
        str(tool.path),
        tool.version,
        str(compiler.path),
        compiler.version,
        _main_file().read_text(),
        trace.value,
        *VERILATOR_FLAGS,
        *MAKE_FLAGS,
    ]


def compile_bench(
    bench: str,
    design: str,
    simulator: Simulator,
    *,
    trace: Trace,
    cache: BuildCache,
    jobs: int,
    into: Path,
) -> None:
    """Compile two Verilog texts and put the result and the texts into a folder.

    Parameters
    ----------
    bench, design : str
        Verilog of the bench and of the design.
    simulator : Simulator
    trace : Trace
        Kind of waveform file that the simulator shall be able to write.
    cache : BuildCache
        Where Verilator's compiled library is kept.
    jobs : int
        C++ compilations at a time.
    into : Path
        Gets ``sim`` (Verilator) or ``sim.vvp`` (Icarus), ``bench.v`` and ``design.v``.

    Raises
    ------
    ToolFailed
        If a program refuses the text.
    """
    # GNU make refuses folders with spaces in their names, so it never sees the cache's own name.
    with scratch() as work:
        (work / "bench.v").write_text(bench)
        (work / "design.v").write_text(design)
        if simulator is Simulator.ICARUS:
            flags = ["-g2005", "-s", BENCH, "-o", "sim.vvp"]
            command = [str(find_icarus().path), *flags, "bench.v", "design.v"]
            run_tool(command, cwd=work, what="Icarus Verilog")
            result = work / "sim.vvp"
        else:
            _verilate(work, trace, cache, jobs)
            result = work / "obj" / "sim"
        for file in (result, work / "bench.v", work / "design.v"):
            shutil.copy(file, into)


def _main_file() -> Path:
    """The C++ main program that cocotb supplies for Verilator."""
    return Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"


def _verilate(work: Path, trace: Trace, cache: BuildCache, jobs: int) -> None:
    """Make ``obj/sim`` of ``bench.v`` and ``design.v``."""
    tool, compiler = find_verilator(), find_compiler()
    if trace is Trace.FST:
        find_fst_headers()
    foreign = ("VERILATOR", "MAKE", "MFLAGS")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    if tool.root is not None:
        # Through a link, as make takes no spaces in this name either.
        (work / "root").symlink_to(tool.root)
        env["VERILATOR_ROOT"] = str(work / "root")
    (work / "libs").symlink_to(cocotb_libraries())
    shutil.copy(_main_file(), work / "main.cpp")
    kinds = {Trace.NONE: [], Trace.VCD: ["--trace-vcd"], Trace.FST: ["--trace-fst"]}
    command = [
        *(str(tool.path), "--cc", "--exe", "--vpi", "--Mdir", "obj", "--prefix", "Vtop"),
        *("-o", "sim", "--top-module", BENCH, "--timescale", "1ns/1ps"),
        *VERILATOR_FLAGS,
        *kinds[trace],
        *("-LDFLAGS", f"-L{work / 'libs'} -lcocotbvpi_verilator"),
        *(str(work / "main.cpp"), "bench.v", "design.v"),
    ]
    run_tool(command, cwd=work, env=env, what="Verilator")
    # The Python package's makefile names the programs of the machine that it was built on.
    make = [
        *(str(find_make().path), "-f", "Vtop.mk", "-j", str(jobs)),
        # Found out when the package was built, with another compiler; designs of several files need it.
        "CFG_CXXFLAGS_PCH_I=-include",
        *(f"CXX={compiler.path}", f"LINK={compiler.path}", "AR=ar", f"PYTHON3={sys.executable}"),
        *MAKE_FLAGS,
        f"VM_TRACE={int(trace is not Trace.NONE)}",
    ]
    _reuse_library(work / "obj", make, env, trace, cache)
    run_tool([*make, "sim"], cwd=work / "obj", env=env, what="compiling Verilator's output")


def _reuse_library(
    objects: Path, make: list[str], env: dict[str, str], trace: Trace, cache: BuildCache
) -> None:
    """Put Verilator's compiled library, the same for all designs, where make would.

    Compiling it takes most of the time of a small design's build.
    """
    names, listed = [], False
    for line in (objects / "Vtop_classes.mk").read_text().splitlines():
        if line.startswith(("VM_GLOBAL_FAST", "VM_GLOBAL_SLOW")):
            listed = True
        elif listed and line.startswith("  ") and line.strip():
            names.append(line.strip(" \t\\") + ".o")
        else:
            listed = False
    if not names:
        return
    contents = "\0".join([*identity(Simulator.VERILATOR, trace), *names])
    key = "library-" + hashlib.sha256(contents.encode()).hexdigest()[:32]

    def build(entry: Path) -> None:
        run_tool([*make, *names], cwd=objects, env=env, what="compiling Verilator's library")
        for name in names:
            shutil.copy(objects / name, entry)

    with cache.hold(key, build) as entry:
        for name in names:
            if not (objects / name).exists():
                shutil.copy(entry / name, objects)  # newer than its sources: make leaves it alone
