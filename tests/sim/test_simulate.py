"""The benches on a small design: a right one passes, and each fault is found and named."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwgen.errors import BadInput, ToolFailed
from sim.divergence import explain_mismatch
from sim.simulate import Conditions, Mode, SimResult, simulate
from sim.tools import Simulator
from sim.verify import check_framing, check_reset
from tests.sim.toy import BEATS, evaluate, frames, toy, values

PATIENCE = 300
PAUSES = Conditions(gaps=0.3, stalls=0.4, seed=5, patience=PATIENCE)


def run(fault: str, conditions: Conditions, cache_dir: Path, count: int = 4) -> SimResult:
    """A faulty design in Icarus."""
    codes = frames(count)
    return simulate(
        toy(fault),
        codes,
        evaluate(codes),
        simulator=Simulator.ICARUS,
        conditions=conditions,
        cache_dir=cache_dir,
    )


@pytest.mark.parametrize("mode", Mode)
def test_full_rate(mode: Mode, simulator: Simulator, cache_dir: Path) -> None:
    codes = frames(4)
    seen: list[tuple[int, int]] = []
    result = simulate(
        toy(),
        codes,
        evaluate(codes),
        simulator=simulator,
        conditions=Conditions(mode=mode, patience=PATIENCE),
        cache_dir=cache_dir,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result.ok, result
    assert np.array_equal(result.outputs, evaluate(codes))
    assert result.interval == BEATS
    assert result.latency == BEATS - 1 + 2  # two registers
    assert np.diff(result.starts).tolist() == np.diff(result.ends).tolist() == [BEATS] * 3
    assert seen[-1] == (4, 4)


@pytest.mark.parametrize("mode", Mode)
def test_gaps_and_stalls(mode: Mode, simulator: Simulator, cache_dir: Path) -> None:
    codes = frames(6)
    conditions = Conditions(mode=mode, gaps=0.3, stalls=0.4, seed=3, patience=PATIENCE)
    result = simulate(
        toy(),
        codes,
        evaluate(codes),
        simulator=simulator,
        conditions=conditions,
        cache_dir=cache_dir,
    )
    assert result.ok, result
    assert result.ends[-1] > 1.4 * 6 * BEATS  # it did pause


def test_reset_in_a_frame(simulator: Simulator, cache_dir: Path) -> None:
    codes = frames(3)
    result = check_reset(
        toy(),
        codes,
        evaluate(codes),
        simulator=simulator,
        stalls=0.4,
        patience=PATIENCE,
        cache_dir=cache_dir,
    )
    assert result.ok, result
    assert result.starts[0] > BEATS  # cycles before the reset count


@pytest.mark.parametrize("mode", Mode)
def test_framing(mode: Mode, simulator: Simulator, cache_dir: Path) -> None:
    result = check_framing(
        toy(),
        frames(5),
        evaluate,
        simulator=simulator,
        mode=mode,
        patience=PATIENCE,
        cache_dir=cache_dir,
    )
    assert result.ok, result
    assert result.frame_error


@pytest.mark.parametrize(
    "fault, text",
    [
        ("no tlast", "tlast is low on the last beat"),
        ("early tlast", "tlast is high before the last beat"),
        ("payload moves", "tdata changed while the beat waited"),
        ("valid drops", "tvalid fell before"),
        ("stops", "21 of 64 output beats came; no beat moved for 300 cycles"),
        ("unknown bits", "tdata has unknown bits"),
        ("beat too many", "1 output beats too many"),
        ("ready unknown", "s_axis_tready is X or Z"),
    ],
)
def test_fault_in_the_stream(fault: str, text: str, cache_dir: Path) -> None:
    result = run(fault, PAUSES, cache_dir)
    assert not result.ok
    assert any(text in problem for problem in result.problems), result.problems


def test_fault_in_the_stream_through_axi(cache_dir: Path) -> None:
    conditions = Conditions(mode=Mode.AXI, gaps=0.3, stalls=0.4, patience=PATIENCE)
    result = run("payload moves", conditions, cache_dir)
    assert any("tdata changed" in problem for problem in result.problems), result.problems


def test_reset_that_forgets(cache_dir: Path) -> None:
    codes = frames(3)
    result = check_reset(
        toy("reset forgets"),
        codes,
        evaluate(codes),
        simulator=Simulator.ICARUS,
        patience=PATIENCE,
        cache_dir=cache_dir,
    )
    assert any("tlast" in problem for problem in result.problems), result.problems


@pytest.mark.parametrize("fault", ["error not sticky", "no resynchronisation", "no filling"])
def test_fault_in_framing(fault: str, cache_dir: Path) -> None:
    result = check_framing(
        toy(fault),
        frames(5),
        evaluate,
        simulator=Simulator.ICARUS,
        patience=PATIENCE,
        cache_dir=cache_dir,
    )
    assert not result.ok


def test_divergence(simulator: Simulator, cache_dir: Path) -> None:
    """Beat 21 is the sixth of frame 1: pixel 2, channel group 1, of which only channel 2 counts."""
    codes = frames(3, seed=1)
    design = toy("one wrong code")
    result = simulate(
        design,
        codes,
        evaluate(codes),
        simulator=simulator,
        conditions=Conditions(patience=PATIENCE),
        cache_dir=cache_dir,
    )
    assert result.wrong == (1,)
    assert not result.problems
    divergence = explain_mismatch(
        design, codes, evaluate(codes), values, result, cache_dir=cache_dir
    )
    assert divergence is not None
    assert (divergence.layer, divergence.instance, divergence.image) == ("second", "b", 1)
    # The count at the time of a beat's calculation lags by one: the fault hits beat 22.
    (difference,) = divergence.differences
    assert (divergence.count, divergence.missing) == (1, 0)
    wrong = np.argwhere(result.outputs[1] != evaluate(codes)[1])
    assert wrong.tolist() == [[difference.channel, difference.row, difference.column]]
    place = (1, difference.channel, difference.row, difference.column)
    assert difference.expected == evaluate(codes)[place]
    assert difference.actual == result.outputs[place]
    assert f"{difference.actual} instead of {difference.expected}" in str(divergence)
    assert "layer 'second', image 1, channel" in str(divergence)


def test_divergence_of_a_standstill(cache_dir: Path) -> None:
    codes = frames(2)
    result = run("stops", Conditions(patience=PATIENCE), cache_dir, count=2)
    assert result.wrong == (1,)
    divergence = explain_mismatch(
        toy("stops"), codes, evaluate(codes), values, result, cache_dir=cache_dir
    )
    assert divergence is not None
    assert divergence.missing
    assert "did not come" in str(divergence)


def test_divergence_with_unknown_bits(cache_dir: Path) -> None:
    result = run("unknown bits", Conditions(patience=PATIENCE), cache_dir, count=2)
    codes = frames(2)
    divergence = explain_mismatch(
        toy("unknown bits"), codes, evaluate(codes), values, result, cache_dir=cache_dir
    )
    assert divergence is not None
    assert divergence.differences[0].actual is None
    assert "unknown instead of" in str(divergence)


@pytest.mark.parametrize(
    "simulator, suffix, magic",
    [
        (Simulator.ICARUS, ".vcd", b"$"),
        (Simulator.ICARUS, ".fst", b"\x00"),
        (Simulator.VERILATOR, ".vcd", b"$"),
    ],
    indirect=["simulator"],
)
def test_trace(
    simulator: Simulator, suffix: str, magic: bytes, cache_dir: Path, tmp_path: Path
) -> None:
    codes = frames(1)
    path = tmp_path / f"waves{suffix}"
    result = simulate(
        toy(),
        codes,
        evaluate(codes),
        simulator=simulator,
        conditions=Conditions(patience=PATIENCE),
        trace=path,
        cache_dir=cache_dir,
    )
    assert result.ok
    content = path.read_bytes()
    assert content.startswith(magic)
    assert len(content) > 500


def test_bad_input(cache_dir: Path, tmp_path: Path) -> None:
    codes = frames(2)
    with pytest.raises(BadInput, match=r"codes must be int64 of shape \(N, 3, 2, 4\)"):
        simulate(toy(), codes[:, :2], evaluate(codes), cache_dir=cache_dir)
    with pytest.raises(BadInput, match="one expected frame for each input frame"):
        simulate(toy(), codes, evaluate(codes)[:1], cache_dir=cache_dir)
    with pytest.raises(BadInput, match=r"must end in \.vcd or \.fst"):
        simulate(toy(), codes, evaluate(codes), trace=tmp_path / "x.txt", cache_dir=cache_dir)
    with pytest.raises(BadInput, match="gaps must be at least 0 and below 1"):
        Conditions(gaps=1.0)
    with pytest.raises(BadInput, match=r"is not writable|cannot create"):
        simulate(toy(), codes, evaluate(codes), cache_dir=Path("/proc/none"))


def test_refused_design(cache_dir: Path) -> None:
    """The simulator's own words reach the user."""
    broken = replace(toy(), verilog="module toy(; endmodule")
    codes = frames(1)
    with pytest.raises(ToolFailed, match="syntax error"):
        simulate(broken, codes, evaluate(codes), simulator=Simulator.ICARUS, cache_dir=cache_dir)


def test_time_limit(cache_dir: Path) -> None:
    """A run that takes too long is stopped."""
    with pytest.raises(ToolFailed, match=r"did not end in 1 seconds"):
        run("stops", Conditions(patience=2**31 - 1, timeout=1.0), cache_dir)


def test_no_space_for_temporary_files(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    codes = frames(1)
    with pytest.raises(BadInput, match="cannot work in the folder for temporary files"):
        simulate(
            toy("stops"),
            codes,
            evaluate(codes),
            simulator=Simulator.ICARUS,
            cache_dir=cache_dir,
        )
