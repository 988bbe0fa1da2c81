"""The state of a search as a file: what is written comes back, and what is damaged is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from hwgen.errors import BadInput
from quant.state import SearchState, differences

IDENTITY = {"method": "some", "seed": 0}
RECORD = {"step": 3}
ARRAYS = {"best": np.arange(12).reshape(3, 4)}


@pytest.fixture
def state(tmp_path: Path) -> SearchState:
    saved = SearchState(path=tmp_path / "state.npz", identity=IDENTITY)
    saved.save(RECORD, ARRAYS)
    return saved


def test_what_was_saved_comes_back(state: SearchState) -> None:
    found = state.load()
    assert found is not None
    record, arrays = found
    assert record == RECORD
    assert list(arrays) == ["best"]
    np.testing.assert_array_equal(arrays["best"], ARRAYS["best"])


@pytest.mark.parametrize("content", [b"", b"no state\n", b"PK", b"\x80\x04N."])
def test_other_files(state: SearchState, content: bytes) -> None:
    assert state.path is not None
    state.path.write_bytes(content)
    with pytest.raises(BadInput, match=r"is no state of a search \(it is not a whole \.npz file\)"):
        state.load()
    assert state.path.read_bytes() == content


def test_any_damage_is_refused_or_harmless(state: SearchState) -> None:
    """Bytes that change in the archive's headers, names or contents, 1,500 files."""
    path = state.path
    assert path is not None
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            found = state.load()
        except BadInput:
            refused += 1
            assert path.read_bytes() == damaged
        else:
            assert found is not None
            assert found[0] == RECORD
            assert all(np.array_equal(found[1][name], ARRAYS["best"]) for name in found[1])
    assert refused > 1000


def test_differences_in_words() -> None:
    found = {"seed": 0, "network": "ab" * 32, "options": {"entry_bits": 8, "mirror": True}}
    wanted = {"seed": 1, "network": "cd" * 32, "options": {"entry_bits": 8, "mirror": False}}
    told = "other network, mirror yes instead of no, seed 0 instead of 1"
    assert differences(found, wanted) == told
    assert differences(found, {**found, "images": 5}) == "images none instead of 5"
    assert differences(found, found) == ""
