"""From a trained network to verified hardware, step by step or in one call: the Python interface."""

from __future__ import annotations

from hwgen.flow.build import BuildOptions, build
from hwgen.flow.model import Model, load_model
from hwgen.flow.options import HardwareOptions, parse_pins, quant_config
from hwgen.flow.steps import (
    cosimulate,
    fold_network,
    generate,
    integer_accuracy,
    quantize,
    synthesize,
    test_codes,
)
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
    "cosimulate",
    "fold_network",
    "generate",
    "integer_accuracy",
    "load_dataset",
    "load_model",
    "load_network",
    "parse_pins",
    "quant_config",
    "quantize",
    "save_network",
    "synthesize",
    "test_codes",
]
