"""The errors this project raises for input it cannot accept.

Every message says what must hold, what was given, where, and the smallest edit that would work.
The command line prints them without a traceback and exits with status 2.
"""

from __future__ import annotations

__all__ = [
    "BadDataset",
    "BadInput",
    "BadNetwork",
    "DoesNotFit",
    "HwgenError",
    "Mismatch",
    "MissingTool",
    "ToolFailed",
    "UnsupportedLayer",
]


class HwgenError(Exception):
    """Base of all errors that a user can cause and mend."""


class BadInput(HwgenError):
    """An argument, option or file is not what the operation needs."""


class BadNetwork(BadInput):
    """A network file or graph is inconsistent: shapes, ranges, schema or non-finite weights."""


class BadDataset(BadInput):
    """A dataset is missing, truncated or of the wrong shape."""


class UnsupportedLayer(HwgenError):
    """Nodes that cannot be converted or built; the message names every one of them."""


class DoesNotFit(HwgenError):
    """A design needs more of a resource than the target has, or a bound cannot be met."""


class MissingTool(HwgenError):
    """An external program or optional package is not installed."""


class ToolFailed(HwgenError):
    """An external program ran and failed; the message holds the last lines it printed."""


class Mismatch(HwgenError):
    """Two descriptions that must agree bit for bit do not; the message locates the first place."""
