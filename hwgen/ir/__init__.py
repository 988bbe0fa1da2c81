"""The integer network: formats, requantisation, layers and their integer meaning."""

from hwgen.ir.formats import Fixed, TensorType, signed_width, width_of
from hwgen.ir.geometry import Geometry
from hwgen.ir.network import Network
from hwgen.ir.ops import (
    INPUT,
    Add,
    AvgPool,
    Bias,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MacOp,
    MaxPool,
    Op,
    Rescale,
    Weights,
    mac_interval,
)
from hwgen.ir.requant import Requant, Rounding
from hwgen.ir.serial import load_network, save_network
from hwgen.ir.walk import Walk, WindowMode

__all__ = [
    "INPUT",
    "Add",
    "AvgPool",
    "Bias",
    "Concat",
    "Conv",
    "Fixed",
    "Flatten",
    "Geometry",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Linear",
    "MacOp",
    "MaxPool",
    "Network",
    "Op",
    "Requant",
    "Rescale",
    "Rounding",
    "TensorType",
    "Walk",
    "Weights",
    "WindowMode",
    "load_network",
    "mac_interval",
    "save_network",
    "signed_width",
    "width_of",
]
