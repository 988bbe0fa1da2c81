"""Whole numbers, members of enumerations and seeds: what passes and what is refused."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import pytest

import quant
from hwgen.errors import BadInput
from hwgen.flow import load_model
from hwgen.flow.model import Model
from quant.checks import check_member, check_options, check_seed, check_whole
from quant.datasets import load_dataset
from quant.splits import Splits


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@cache
def given() -> tuple[Model, Splits]:
    data = load_dataset("digits")
    return load_model("digits-tiny", data=data), Splits.of(data, held_out=200, search=40)


def test_whole_numbers() -> None:
    found = [check_whole("n", value, 2, 8) for value in (2, 8, np.int64(5), np.uint8(3))]
    assert found == [2, 8, 5, 3]
    assert all(type(value) is int for value in found)
    assert check_whole("n", 10**30, 0) == 10**30


@pytest.mark.parametrize("value", [1, 9, 4.0, 4.5, "4", None, True, float("nan"), [4]])
def test_other_numbers_are_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="n must be a whole number from 2 to 8, not"):
        check_whole("n", value, 2, 8)


def test_no_upper_end() -> None:
    with pytest.raises(BadInput, match="n must be a whole number at least 0, not -1"):
        check_whole("n", -1, 0)


def test_members() -> None:
    check_member("colour", Colour.RED, Colour)
    with pytest.raises(BadInput, match=r"one of Colour\.RED, Colour\.BLUE, not 'red'"):
        check_member("colour", "red", Colour)


@pytest.mark.parametrize("seed", [-1, 1 << 32, 0.0])
@pytest.mark.parametrize("method", ["adaptive", "evolve", "cluster", "accumulator"])
def test_methods_refuse_seeds_out_of_range(method: str, seed: Any) -> None:
    model, splits = given()
    options = getattr(quant, f"{method.capitalize()}Options")()
    with pytest.raises(BadInput, match="the seed must be a whole number from 0 to 4294967295"):
        getattr(quant, method)(
            model.graph, preprocess=model.preprocess, splits=splits, options=options, seed=seed
        )
    assert check_seed(0) == 0
    assert check_seed((1 << 32) - 1) == (1 << 32) - 1


def test_evolve_needs_training_images() -> None:
    model, splits = given()
    bare = replace(
        splits, train_images=splits.train_images[:0], train_labels=splits.train_labels[:0]
    )
    with pytest.raises(BadInput, match="needs training images"):
        quant.evolve(
            model.graph,
            preprocess=model.preprocess,
            splits=bare,
            options=quant.EvolveOptions(epochs=0, final_epochs=0),
        )


@pytest.mark.parametrize(
    "labels",
    [
        np.full(40, -1),
        np.zeros(40),
        np.zeros(39, dtype=np.int64),
        np.zeros((40, 1), dtype=np.int64),
        [0] * 40,
    ],
)
def test_wrong_labels_are_refused(labels: Any) -> None:
    _, splits = given()
    with pytest.raises(BadInput, match="one label, an integer of at least 0, for each of the 40"):
        replace(splits, search_labels=labels)


def test_labels_of_other_classes_are_refused() -> None:
    model, splits = given()
    labels = splits.search_labels.copy()
    labels[7] = 10
    with pytest.raises(BadInput, match="labels go up to 10, but the network has 10 outputs"):
        quant.linear(
            model.graph,
            preprocess=model.preprocess,
            splits=replace(splits, search_labels=labels),
        )


@pytest.mark.parametrize("method", ["adaptive", "layerwise", "evolve", "cluster", "accumulator"])
def test_options_of_another_method(method: str) -> None:
    """Both classes are named, before anything is computed."""
    model, splits = given()
    other = quant.ClusterOptions if method == "layerwise" else quant.LayerwiseOptions
    mine = f"{method.capitalize()}Options"
    function = getattr(quant, method)
    with pytest.raises(
        BadInput, match=rf"must be {mine}\(\.\.\.\), not of the class {other.__name__}"
    ):
        function(model.graph, preprocess=model.preprocess, splits=splits, options=other())


def test_no_options_are_the_defaults() -> None:
    assert check_options(None, quant.ClusterOptions) == quant.ClusterOptions()
    chosen = quant.ClusterOptions(bits=3)
    assert check_options(chosen, quant.ClusterOptions) is chosen
