"""What the tests of the simulation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.cache import default_cache
from sim.tools import Simulator


@pytest.fixture
def cache_dir(cache_home: Path) -> Path:
    """The build cache of this run."""
    folder = default_cache()
    assert folder.is_relative_to(cache_home)
    return folder


@pytest.fixture(params=list(Simulator), ids=lambda simulator: simulator.value)
def simulator(request: pytest.FixtureRequest) -> Simulator:
    """Each simulator."""
    assert isinstance(request.param, Simulator)
    return request.param
