"""Pipeline depths of the hardware, in cycles: what the schedule counts and the components
implement.

A stage issues a step at cycle ``t``; its effect reaches the stage's output buffer at ``t +
latency`` and can be taken from there at ``t + latency + 1``. Pipelines never stall: a step that
makes an output is issued only when the output buffer has a free place for it (credits).
"""

from __future__ import annotations

__all__ = ["MEMORY_READ", "MULTIPLY", "accumulate_latency", "requant_latency", "tree_latency"]

MEMORY_READ = 2
"""Address to data: the memory's own register and the output register behind it."""

MULTIPLY = 1
"""The product register; the memory's output register is the operand register."""


def tree_latency(terms: int) -> int:
    """Levels of a registered binary adder tree over ``terms`` products."""
    return (terms - 1).bit_length()


def accumulate_latency() -> int:
    """The accumulator register."""
    return 1


def requant_latency(*, scaled: bool) -> int:
    """Requantiser: (multiply and add), then round, then saturate. ``scaled``: some ``mult`` is not
    1."""
    return 4 if scaled else 2
