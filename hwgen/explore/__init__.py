"""Sweeps over a network's choices, with tables and plots."""

from hwgen.explore.sweep import sweep

__all__ = ["sweep"]
