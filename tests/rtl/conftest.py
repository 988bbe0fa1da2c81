"""Settings of the hardware tests."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # A component that a test creates only to look at it, or that refuses its arguments.
    config.addinivalue_line("filterwarnings", "ignore::amaranth.hdl.UnusedElaboratable")
