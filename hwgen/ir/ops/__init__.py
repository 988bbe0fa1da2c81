"""One frozen dataclass per layer, with its integer meaning."""

from hwgen.ir.ops.add import Add
from hwgen.ir.ops.base import INPUT, Bias, Op, Weights
from hwgen.ir.ops.concat import Concat
from hwgen.ir.ops.conv import Conv
from hwgen.ir.ops.flatten import Flatten
from hwgen.ir.ops.global_pool import GlobalAvgPool, GlobalMaxPool
from hwgen.ir.ops.linear import Linear
from hwgen.ir.ops.mac import MacOp, mac_interval
from hwgen.ir.ops.pool import AvgPool, MaxPool
from hwgen.ir.ops.rescale import Rescale

__all__ = [
    "INPUT",
    "Add",
    "AvgPool",
    "Bias",
    "Concat",
    "Conv",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Linear",
    "MacOp",
    "MaxPool",
    "Op",
    "Rescale",
    "Weights",
    "mac_interval",
]
