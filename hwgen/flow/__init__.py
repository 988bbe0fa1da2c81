"""From a trained network to verified hardware, step by step or in one call: the Python interface.

Names load their modules when they are first used, so that hardware can be made without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwgen.flow.hardware import cosimulate, fold_network, generate, synthesize
    from hwgen.flow.methods import quantize_by, splits_of
    from hwgen.flow.model import Model, load_model
    from hwgen.flow.options import HardwareOptions, parse_pins, quant_config
    from hwgen.flow.pipeline import BuildOptions, build, build_saved
    from hwgen.flow.steps import input_codes, integer_accuracy, quantize
    from hwgen.ir import Network, load_network, save_network
    from quant.datasets import Dataset, load_dataset
    from sim.tools import Simulator

__all__ = [
    "BuildOptions",
    "Dataset",
    "HardwareOptions",
    "Model",
    "Network",
    "Simulator",
    "build",
    "build_saved",
    "cosimulate",
    "fold_network",
    "generate",
    "input_codes",
    "integer_accuracy",
    "load_dataset",
    "load_model",
    "load_network",
    "parse_pins",
    "quant_config",
    "quantize",
    "quantize_by",
    "save_network",
    "splits_of",
    "synthesize",
]

_MODULES = {
    "hwgen.flow.pipeline": ("BuildOptions", "build", "build_saved"),
    "hwgen.flow.hardware": ("cosimulate", "fold_network", "generate", "synthesize"),
    "hwgen.flow.methods": ("quantize_by", "splits_of"),
    "hwgen.flow.model": ("Model", "load_model"),
    "hwgen.flow.options": ("HardwareOptions", "parse_pins", "quant_config"),
    "hwgen.flow.steps": ("integer_accuracy", "quantize", "input_codes"),
    "hwgen.ir": ("Network", "load_network", "save_network"),
    "quant.datasets": ("Dataset", "load_dataset"),
    "sim.tools": ("Simulator",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwgen.flow' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
