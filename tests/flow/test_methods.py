"""The methods by name, from a model and a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwgen import flow
from hwgen.errors import BadInput
from hwgen.flow.methods import (
    METHODS,
    limit_message,
    make_options,
    quantize_by,
    result_rows,
    result_table,
)
from quant.data.dataset import Dataset
from quant.methods.adaptive import AdaptiveOptions, Form


@pytest.fixture(scope="module")
def data() -> Dataset:
    return flow.load_dataset("digits")


@pytest.fixture(scope="module")
def model(data: Dataset) -> flow.Model:
    return flow.load_model("digits-tiny", data=data)


def test_splits(model: flow.Model, data: Dataset) -> None:
    splits = flow.splits_of(model, data, 50)
    assert np.array_equal(splits.search_images, data.search_images[:50])
    assert np.array_equal(splits.train_images, data.fit_images)
    assert splits.search_seen is False
    assert flow.splits_of(replace(model, held_out=None), data).search_seen is True
    small = replace(
        data,
        train_images=data.train_images[:, :, :-2, :-2],
        test_images=data.test_images[:, :, :-2, :-2],
    )
    with pytest.raises(BadInput, match="takes images of"):
        flow.splits_of(model, small)


def test_linear_is_the_same_by_either_way(model: flow.Model, data: Dataset) -> None:
    config = flow.quant_config("5")
    result = quantize_by("linear", model, flow.splits_of(model, data), config=config)
    codes = flow.input_codes(result.network, data, 20)
    expected = flow.quantize(model, data, config).evaluate(codes)
    assert np.array_equal(result.network.evaluate(codes), expected)
    rows = {label: values for label, *values in result_rows(result)}
    assert rows["images"] == ["200", "500"]
    assert rows["float"] == ["97.50%", "96.60%"]
    assert limit_message(result) is None
    assert result_table(result)["cost"]["constants"] > 0
    more = replace(
        result,
        record={
            "ratio": 6.125,
            "sparsity": 0.8,
            "options": {"max_drop": 0.004},
            "test_limit_met": False,
        },
    )
    rows = {label: values for label, *values in result_rows(more)}
    assert rows["times smaller than in float32"] == ["6.12"]
    assert rows["weights pruned"] == ["80.0%"]
    assert rows["drop allowed, relative"][0] == "0.40%, kept"
    assert ("kept" in rows["drop allowed, relative"][1]) is (result.test.relative <= 0.004)


def test_options_from_texts() -> None:
    options = make_options("adaptive", {"form": "codebook", "bits": 3})
    assert options == AdaptiveOptions(form=Form.CODEBOOK, bits=3)
    with pytest.raises(BadInput, match="form must be one of clip, codebook, not 'both'"):
        make_options("adaptive", {"form": "both"})
    with pytest.raises(BadInput, match=r"epochs must be a whole number, not 0\.5"):
        make_options("cluster", {"epochs": 0.5})
    assert make_options("evolve", {"epochs": 0.5}).epochs == 0.5


def test_state_and_defaults_reach_the_method(
    model: flow.Model, data: Dataset, tmp_path: Path
) -> None:
    state = tmp_path / "state.npz"
    options = AdaptiveOptions(bits=3, evaluations=20)
    splits = flow.splits_of(model, data)
    result = quantize_by("adaptive", model, splits, options=options, seed=3, state=state)
    assert result.record["seed"] == 3
    assert result.network.name == "digits-tiny"
    assert state.exists()  # clearing it is for whoever saved the result


def test_what_a_method_does_not_take_is_refused(model: flow.Model, data: Dataset) -> None:
    splits = flow.splits_of(model, data)
    with pytest.raises(BadInput, match="linear takes no options"):
        quantize_by("linear", model, splits, options=AdaptiveOptions())
    with pytest.raises(BadInput, match="config is for the method linear"):
        quantize_by("adaptive", model, splits, config=flow.quant_config("5"))


def test_no_such_method(model: flow.Model, data: Dataset) -> None:
    with pytest.raises(BadInput, match=", ".join(METHODS)):
        quantize_by("magic", model, flow.splits_of(model, data))
