"""Saved networks: equal both ways, equal bytes, and nothing damaged or foreign is read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from hwgen.errors import BadInput, BadNetwork
from hwgen.ir import Conv, Network, load_network, save_network
from hwgen.ir.serial import LAYERS, NETWORK_FILE, WEIGHTS_FILE
from tests.strategies import networks, random_codes, random_network

SOME = next(
    network
    for network in map(random_network, range(1000))
    if any(isinstance(op, Conv) and op.bias is not None and op.requant for op in network.ops[:1])
)
"""A network whose first layer is a convolution with a bias and a requantiser."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(hardware_only=False))
def test_saved_networks_come_back(tmp_path: Path, network: Network) -> None:
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.same(network)
    codes = random_codes(network, 3)
    assert np.array_equal(loaded.evaluate(codes), network.evaluate(codes))
    assert {path.name for path in tmp_path.iterdir()} == {NETWORK_FILE, WEIGHTS_FILE}


def test_codebook_and_scales_come_back(tmp_path: Path) -> None:
    first = SOME.ops[0]
    assert isinstance(first, Conv)
    codes = np.sign(first.weights.codes) * 5
    weights = replace(first.weights, codes=codes, codebook=(-5, 0, 5, 7), scale=(0.5, 2.0, 0.25))
    network = replace(SOME, ops=(replace(first, weights=weights), *SOME.ops[1:]))
    save_network(network, tmp_path)
    back = load_network(tmp_path).ops[0]
    assert isinstance(back, Conv)
    assert back.weights == weights
    assert (back.weights.codebook, back.weights.scale) == ((-5, 0, 5, 7), (0.5, 2.0, 0.25))
    assert (back.weights.stored_width, weights.width) == (2, 6)
    assert np.array_equal(back.weights.stored, np.searchsorted([-5, 0, 5, 7], codes))


def test_every_layer_has_a_form() -> None:
    from hwgen import ir

    layers = {
        kind
        for kind in vars(ir).values()
        if isinstance(kind, type) and issubclass(kind, ir.Op) and kind not in (ir.Op, ir.MacOp)
    }
    assert set(LAYERS) == layers


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_network(random_network(7), tmp_path / name)
    for file in (NETWORK_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Save a network and change its JSON."""
    save_network(SOME, folder)
    path = folder / NETWORK_FILE
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def layer(value: dict[str, Any]) -> dict[str, Any]:
    """The first layer of a network's JSON."""
    first: dict[str, Any] = value["layers"][0]
    return first


EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda v: v.update(schema=3), "schema must be 2, not 3"),
    (lambda v: v.update(schema="1"), "integer key 'schema'"),
    (lambda v: v.pop("schema"), "integer key 'schema'"),
    (lambda v: v.pop("name"), "the file lacks the key 'name'; add it"),
    (lambda v: v.update(extra=1), "the file has the unknown key 'extra'; remove it"),
    (lambda v: v.update(name=3), "name must be a string, not 3"),
    (lambda v: v.update(layers={}), "layers must be a list"),
    (lambda v: v.update(layers=[]), "no layer needs"),
    (lambda v: v.update(output="x"), "output must be a layer, not 'x'"),
    (lambda v: v.update(weights_sha256="0"), "SHA-256 differs"),
    (lambda v: v["input"].update(width=True), "input.width must be an integer, not true"),
    (lambda v: v["input"].update(width=8.0), "input.width must be an integer, not 8.0"),
    (lambda v: v["input"].update(width=0), "input: the width of a format must be at least 1"),
    (lambda v: v["input"].update(shape=[1, "2", 3]), r"input.shape\[1\] must be an integer"),
    (lambda v: v["input"].update(scale="1"), "input.scale must be a finite number"),
    (lambda v: v["input"].pop("zero"), "input lacks the key 'zero'"),
    (lambda v: v["input"].update(signed=1), "input.signed must be true or false, not 1"),
    (lambda v: layer(v).update(op="Convolution"), "op must be one of Conv, Linear"),
    (lambda v: layer(v).pop("op"), "must be an object with the key 'op'"),
    (
        lambda v: layer(v).update(dilation=1),
        r"layers\[0\] \('conv0'\) has the unknown key 'dilation'",
    ),
    (lambda v: layer(v).pop("groups"), r"layers\[0\] \('conv0'\) lacks the key 'groups'"),
    (lambda v: layer(v).update(name="other"), "lacks the array 'other.weights'"),
    (
        lambda v: layer(v)["weights"].update(width=30),
        "'conv0.weights' of weights.npz must be int32",
    ),
    (lambda v: layer(v)["weights"].update(shape=[1, 1, 1, 1]), "must be .* .1, 1, 1, 1. as"),
    (lambda v: layer(v)["weights"].update(shape=[3]), "must be a list of 2 or 4|must be"),
    (lambda v: layer(v)["weights"].pop("scale"), "weights lacks the key 'scale'"),
    (lambda v: layer(v)["weights"].update(codebook=[3, -3]), r"rise, not be \(3, -3\); sort them"),
    (lambda v: layer(v)["weights"].update(codebook=[-3, -3]), "entries of a codebook must rise"),
    (lambda v: layer(v)["weights"].update(codebook=[31]), "must be its entries .31,., not .* at"),
    (lambda v: layer(v)["weights"].update(codebook=[32]), "a codebook of 6 bits signed must lie"),
    (lambda v: layer(v)["weights"].update(codebook=[]), "a codebook must have at least one entry"),
    (lambda v: layer(v)["weights"].update(codebook=[0.5]), "must be an integer, not 0.5"),
    (lambda v: layer(v)["weights"].update(codebook=3), "codebook must be a list, not 3"),
    (lambda v: layer(v)["weights"].pop("codebook"), "weights lacks the key 'codebook'"),
    (lambda v: layer(v)["weights"].update(scale=[1, 2]), "1 entry or one for each of the 3 output"),
    (lambda v: layer(v).update(bias=None), r"no layer needs: \['conv0.bias'\]; remove"),
    (lambda v: layer(v)["requant"].update(rounding="up"), "one of floor, half_up, half_even"),
    (lambda v: layer(v)["requant"].update(shift=[-1]), "requant: a requantiser's shift"),
    (lambda v: layer(v)["requant"].update(mult=3), "requant.mult must be a list, not 3"),
    (lambda v: layer(v)["geometry"].update(stride=[1]), "stride must be a list of 2"),
    (lambda v: layer(v)["geometry"].update(stride=[0, 1]), "stride of at least 1"),
    (lambda v: layer(v).update(inputs="input"), "inputs must be a list"),
    (lambda v: v["layers"].append(v["layers"][0]), "lacks the array 'conv0.weights'"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_edited_networks_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(tmp_path, edit)
    with pytest.raises(BadNetwork, match=message) as caught:
        load_network(tmp_path)
    assert str(tmp_path / NETWORK_FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("[1, 2", "no valid JSON"),
        ("[]", "must be an object"),
        ('{"schema": 1, "schema": 1}', "'schema' is there twice"),
        ('{"schema": NaN}', "finite, not NaN"),
        ("[" * 100_000, "no valid JSON"),
        ("\udcff", "no valid JSON"),
    ],
)
def test_other_text_is_refused(tmp_path: Path, text: str, message: str) -> None:
    save_network(SOME, tmp_path)
    (tmp_path / NETWORK_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadNetwork, match=message):
        load_network(tmp_path)


def test_any_truncation_is_refused(tmp_path: Path) -> None:
    save_network(SOME, tmp_path)
    for file in (NETWORK_FILE, WEIGHTS_FILE):
        whole = (tmp_path / file).read_bytes()
        for length in range(0, len(whole) - 1, max(len(whole) // 37, 1)):
            (tmp_path / file).write_bytes(whole[:length])
            with pytest.raises(BadNetwork):
                load_network(tmp_path)
        (tmp_path / file).write_bytes(whole)
    assert load_network(tmp_path).same(SOME)


def test_halves_of_two_networks_are_refused(tmp_path: Path) -> None:
    save_network(SOME, tmp_path / "a")
    save_network(random_network(3), tmp_path / "b")
    (tmp_path / "b" / WEIGHTS_FILE).replace(tmp_path / "a" / WEIGHTS_FILE)
    with pytest.raises(BadNetwork, match="damaged or from another network"):
        load_network(tmp_path / "a")
    with pytest.raises(BadNetwork, match=rf"cannot read .*{WEIGHTS_FILE}: No such file"):
        load_network(tmp_path / "b")
    with pytest.raises(BadNetwork, match=rf"cannot read .*{NETWORK_FILE}: No such file"):
        load_network(tmp_path / "c")


def replaced(folder: Path, data: bytes) -> None:
    """Put other weights in place, with their digest."""
    (folder / WEIGHTS_FILE).write_bytes(data)
    path = folder / NETWORK_FILE
    value = json.loads(path.read_text())
    value["weights_sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(value))


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_weights_of_other_contents_are_refused(tmp_path: Path) -> None:
    save_network(SOME, tmp_path)
    with np.load(tmp_path / WEIGHTS_FILE) as archive:
        arrays = dict(archive)
    key = next(iter(arrays))
    pickled = io.BytesIO()
    with zipfile.ZipFile(pickled, "w") as archive_file:
        array = io.BytesIO()
        np.lib.format.write_array(array, np.array([{}], dtype=object), allow_pickle=True)
        archive_file.writestr(f"{key}.npy", array.getvalue())
    single = io.BytesIO()
    np.save(single, arrays[key])
    for data, message in (
        (b"", "no readable .npz"),
        (b"PK", "no readable .npz"),
        (single.getvalue(), "no readable .npz"),
        (pickled.getvalue(), r"no readable \.npz.*allow_pickle"),
        (npz(**arrays, more=np.zeros(1)), r"no layer needs: \['more'\]"),
        (npz(**{**arrays, key: arrays[key].astype(float)}), "must be .*, not float64"),
        (npz(**{**arrays, key: arrays[key].ravel()}), "must be"),
        (npz(), "lacks the array"),
    ):
        replaced(tmp_path, data)
        with pytest.raises(BadNetwork, match=message):
            load_network(tmp_path)
    replaced(tmp_path, npz(**arrays))
    assert load_network(tmp_path).same(SOME)


def test_codes_beyond_their_width_are_refused(tmp_path: Path) -> None:
    save_network(SOME, tmp_path)
    with np.load(tmp_path / WEIGHTS_FILE) as archive:
        arrays = dict(archive)
    key = f"{SOME.ops[0].name}.bias"
    arrays[key] = np.full_like(arrays[key], np.iinfo(arrays[key].dtype).max)
    bias = SOME.ops[0].bias  # type: ignore[attr-defined]
    assert bias.width not in (8, 16, 32)
    replaced(tmp_path, npz(**arrays))
    with pytest.raises(BadNetwork, match=r"a bias of .* bits signed must lie within"):
        load_network(tmp_path)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_failed_saves_leave_the_old_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    save_network(SOME, tmp_path)
    calls = iter(range(9))

    def full(handle: int) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    if failing < 2:
        with pytest.raises(BadInput, match="No space left on device"):
            save_network(random_network(3), tmp_path)
        assert load_network(tmp_path).same(SOME)
    else:  # between the two files: the halves are told apart
        with pytest.raises(BadInput, match="No space left on device"):
            save_network(random_network(3), tmp_path)
        with pytest.raises(BadNetwork, match="damaged or from another network"):
            load_network(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {NETWORK_FILE, WEIGHTS_FILE}


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot create the folder"):
        save_network(SOME, tmp_path / "file")
    with pytest.raises(BadNetwork, match="cannot read"):
        load_network(tmp_path / "file")
