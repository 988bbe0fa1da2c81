"""Short runs of each method on the smallest network, for the tests of ``hwgen quantize``."""

from __future__ import annotations

from collections.abc import Callable

Refused = Callable[..., str]
"""Run a command that must be refused; its message."""

TINY = ("quantize", "--data", "digits", "--model", "digits-tiny")
ADAPTIVE = (*TINY, "--method", "adaptive", "--bits", "3", "--evaluations", "40")
SMALL: dict[str, tuple[str, ...]] = {
    "linear": ("--bits", "4"),
    "adaptive": ("--bits", "3", "--form", "codebook", "--evaluations", "30"),
    "evolve": ("--trials", "3", "--population", "2", "--epochs", "0.1", "--final-epochs", "0"),
    "layerwise": ("--max-drop", "0.05"),
    "accumulator": ("--accumulator-bits", "14", "--evaluations", "4"),
    "cluster": ("--bits", "4", "--sparsity", "0.5", "--epochs", "1"),
}
"""A short run of each method."""
