"""Options of ``hwgen quantize``: whose they are, their values, the images that methods take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwgen.cli import idle, parser, quantize
from hwgen.cli.quantize_flags import FLAGS, STUDY, Flag
from hwgen.flow import methods as flow_methods
from hwgen.flow.methods import METHODS, options_class
from quant.data.dataset import Dataset
from tests.cli.conftest import Run, contents
from tests.cli.quantize_case import TINY, Refused

# Options.


def foreign() -> list[tuple[str, Flag]]:
    return [
        (method, flag)
        for flag in (*FLAGS, STUDY)
        for method in METHODS
        if method not in flag.methods
    ]


def value_of(flag: Flag) -> list[str]:
    settings = flag.settings
    if "const" in settings:
        return []
    return [
        settings["choices"][0]
        if "choices" in settings
        else "0.5"
        if "share" in str(settings)
        else "4"
    ]


@pytest.mark.parametrize("method, flag", foreign(), ids=lambda x: getattr(x, "name", x))
def test_options_of_other_methods(
    refused: Refused, tmp_path: Path, method: str, flag: Flag
) -> None:
    text = refused(*TINY, "--method", method, flag.name, *value_of(flag), "--out", tmp_path / "x")
    assert f"{flag.name} is an option of --method {flag.methods[0]}" in text
    assert f"not of {method}" in text
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "option", [("--layer-bits", "fc=4"), ("--calibration", "max"), ("--bits", "4")]
)
def test_options_of_the_baseline(refused: Refused, tmp_path: Path, option: tuple[str, str]) -> None:
    text = refused(*TINY, "--method", "layerwise", *option, "--out", tmp_path / "x")
    assert f"{option[0]} is an option of --method linear" in text


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_option_is_a_field(flag: Flag) -> None:
    """The choices of the command line are the members of the options' enumerations."""
    for method in flag.methods:
        cls = options_class(method)
        assert flag.target in cls.__dataclass_fields__
        for choice in flag.settings.get("choices", ()):
            value = getattr(flow_methods.make_options(method, {flag.target: choice}), flag.target)
            assert value.value == choice
        if "choices" in flag.settings:
            kind = type(value)
            assert {member.value for member in kind} == set(flag.settings["choices"])


@pytest.mark.parametrize(
    "options, words",
    [
        (("adaptive", "--bits", "9"), "bits must be a whole number from 2 to 8, not 9"),
        (("adaptive", "--bits", "4/8/8"), "--bits must be one width"),
        (("accumulator", "--bits", "16"), "give it instead of --bits"),
        (("layerwise", "--multiplications", "-1"), "at least 0, not '-1'"),
        (("layerwise", "--multiplications", "inf"), "at least 0, not 'inf'"),
        (("layerwise", "--max-drop", "1%"), "below 1, not '1%'; 0.01 is 1 %"),
        (("layerwise", "--memory-saved", "1"), "at least 0 and below 1, not '1'"),
        (("layerwise", "--multiplications-saved", "nan"), "at least 0 and below 1, not 'nan'"),
        (("layerwise", "--memory-saved", "0.95"), "are beyond 2 bits everywhere, .*; ask for less"),
        (("linear", "--data-dir", "/none"), "--data digits needs no files; leave --data-dir out"),
        (
            ("adaptive", "--bits", "8", "--form", "codebook", "--entry-bits", "4"),
            "entry_bits must be at least bits",
        ),
        (("adaptive", "--entry-bits", "4"), "entry.bits"),
        (("adaptive", "--control", "lloyd", "--form", "clip"), "form"),
        (("cluster", "--bits", "1"), "bits must be a whole number from 2 to 8, not 1"),
        (("cluster", "--epochs", "1.5"), "epochs must be a whole number, not 1.5"),
        (("evolve", "--population", "1"), "population must be a whole number at least 2, not 1"),
        (("evolve", "--study", "x.db", "--no-resume"), "does not empty a --study"),
        (("evolve", "--study", "nosuch://here/x"), "nosuch"),
        (("linear", "--search-images", "9"), "search set must have at least 10 images, not 9"),
        (("adaptive", "--search-images", "201"), "at most the 200 held-out images.* not 201"),
    ],
)
def test_values(refused: Refused, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    text = refused(*TINY, "--method", *options, "--out", tmp_path / "x")
    assert re.search(words, text), text
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "options, flag, edit",
    [
        (("accumulator", "--mirror"), "--mirror", "give --epochs 4, say"),
        (
            ("cluster", "--mirror", "--epochs", "0", "--tune-epochs", "0"),
            "--mirror",
            "give --epochs or --tune-epochs of at least 1",
        ),
        *(
            (
                ("cluster", flag, "2", "--epochs", "0", "--tune-epochs", "0"),
                flag,
                "give --epochs or --tune-epochs of at least 1",
            )
            for flag in ("--batch", "--rate")
        ),
        (("cluster", "--entry-bits", "6"), "--entry-bits", "give --codebook"),
        (
            ("cluster", "--scope", "layer", "--sparsity", "0"),
            "--scope",
            "give a --sparsity above 0",
        ),
        (
            ("evolve", "--mirror", "--epochs", "0", "--final-epochs", "0"),
            "--mirror",
            "give --epochs or --final-epochs above 0",
        ),
        (("evolve", "--population", "4", "--sampler", "random"), "--population", "nsga2"),
        (
            ("layerwise", "--multiplications", "2", "--mode", "paper"),
            "--multiplications",
            "give --mode improved",
        ),
        (
            ("layerwise", "--multiplications", "0.8", "--mode", "paper"),
            "--multiplications",
            "give --mode improved",
        ),
        (
            ("layerwise", "--memory-saved", "0.5", "--mode", "paper"),
            "--memory-saved",
            "give --mode improved",
        ),
        (
            (
                "layerwise",
                "--multiplications-saved",
                "0",
                "--mode",
                "paper",
                "--tolerance",
                "0.001",
            ),
            "--multiplications-saved",
            "give --mode improved",
        ),
        (
            ("layerwise", "--tolerance", "0.001", "--memory-saved", "0.5"),
            "--tolerance",
            "give neither --memory-saved nor --multiplications-saved",
        ),
        (
            ("layerwise", "--multiplications", "0.8", "--multiplications-saved", "0.7"),
            "--multiplications",
            "give neither --memory-saved nor --multiplications-saved",
        ),
    ],
)
def test_options_that_change_nothing(
    refused: Refused, tmp_path: Path, options: tuple[str, ...], flag: str, edit: str
) -> None:
    """Why, and the smallest edit, are said; without the option the command is understood."""
    text = refused(*TINY, "--method", *options, "--out", tmp_path / "x")
    assert text.startswith(f"{flag} changes nothing here, as ")
    assert edit in text
    assert text.endswith(f", or leave {flag} out\n")
    assert contents(tmp_path) == {}
    rest = list(options)
    place = rest.index(flag)
    del rest[place : place + (1 if flag == "--mirror" else 2)]
    quantize.check(parser().parse_args([*TINY, "--method", *rest, "--out", "x"]))


def test_the_weight_of_multiplications() -> None:
    """What is typed reaches the search; where nothing is, the default refuses no mode."""
    line = (*TINY, "--method", "layerwise", "--multiplications", "1.5", "--out", "x")
    _, options = quantize.check(parser().parse_args([str(part) for part in line]))
    assert options.multiplications == 1.5
    line = (*TINY, "--method", "layerwise", "--mode", "paper", "--out", "x")
    _, options = quantize.check(parser().parse_args([str(part) for part in line]))
    assert options == options_class("layerwise")(mode=options.mode)


@pytest.mark.parametrize(
    "typed, expected",
    [
        (("--memory-saved", "0.5"), (0.5, None)),
        (("--multiplications-saved", "0.7", "--max-drop", "0.02"), (None, 0.7)),
        (("--memory-saved", "0", "--multiplications-saved", "0.7"), (0.0, 0.7)),
    ],
)
def test_savings(typed: tuple[str, ...], expected: tuple[float | None, float | None]) -> None:
    line = (*TINY, "--method", "layerwise", *typed, "--out", "x")
    _, options = quantize.check(parser().parse_args([str(part) for part in line]))
    assert (options.memory_saved, options.multiplications_saved) == expected
    assert options.tolerance is None


def test_idle_options_are_options() -> None:
    """A rule names options of its method, or one that is not there yet would never be refused."""
    known = {(flag.name, method) for flag in FLAGS for method in flag.methods}
    named = {(flag, rule.method) for rule in idle.RULES for flag in (rule.flag, *rule.beside)}
    assert named <= known


def test_where_onnx_may_go(run: Run, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "net"
    text = refused(*TINY, "--out", out, "--onnx", out)
    assert "give --onnx the name of a file" in text
    text = refused(*TINY, "--out", out, "--onnx", out / "method.json")
    assert "name it .onnx" in text
    text = refused(*TINY, "--out", out, "--onnx", tmp_path / "none/net.onnx")
    assert "is not there" in text
    assert contents(tmp_path) == {}
    assert run(*TINY, "--out", out, "--onnx", out / "net.onnx").status == 0
    assert (out / "net.onnx").stat().st_size > 0


def test_an_output_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    """Said before the search, not behind it."""
    (tmp_path / "file").write_text("mine")
    text = refused(*TINY, "--method", "adaptive", "--out", tmp_path / "file")
    assert "must be a folder that can be written" in text
    assert contents(tmp_path) == {"file": b"mine"}


# Images.


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda d: {"train_images": np.concatenate([d.train_images[:-1], d.test_images[:1]])},
            "the search and the test images must have none in common, but share 1",
        ),
        (
            lambda d: {"train_images": np.concatenate([d.test_images[:1], d.train_images[1:]])},
            "the train and the test images must have none in common, but share 1",
        ),
        (lambda d: {"held_out": 0}, "holds out no training images"),
        (lambda d: {"held_out": 5}, "search set must have at least 10 images, not 5"),
        (
            lambda d: {"train_images": d.train_images[:, :, :30, :30]},
            "must have one shape",
        ),
    ],
    ids=["search in test", "training in test", "none", "few", "shape"],
)
def test_images(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Dataset], dict[str, Any]],
    words: str,
) -> None:
    from quant import datasets

    def changed(name: str, **where: object) -> Dataset:
        data = original(name)
        return replace(data, **change(data))

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", changed)
    text = refused(*TINY, "--method", "adaptive", "--out", tmp_path / "x")
    assert re.search(words, text), text
    assert contents(tmp_path) == {}


def test_help_tells_the_defaults() -> None:
    """What a method takes where nothing is typed stands in the help of its option."""
    for flag in FLAGS:
        for method in flag.methods:
            value = getattr(options_class(method)(), flag.target)
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            if isinstance(value, bool) or value is None or flag.name == "--tolerance":
                continue  # a switch, or told in words
            if not isinstance(value, int | float):
                shown = value.value
            words = rf"default {re.escape(shown)}\b"
            assert re.search(words, flag.settings["help"]), (flag.name, method, shown)
