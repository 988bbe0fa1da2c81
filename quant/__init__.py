"""Float networks in, integer networks out: import, data, training, calibration, quantisation.

Names load their modules when they are first used: the data sets and the parameters need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.baseline import quantize_linear
    from quant.checkpoints import load_checkpoint, save_checkpoint, shipped_checkpoint
    from quant.config import LayerBits, QuantConfig
    from quant.datasets import Dataset, load_dataset
    from quant.formats import Calibration
    from quant.graph import FloatGraph
    from quant.importers import import_onnx, import_torch
    from quant.judge import Judge, Score
    from quant.methods.accumulator import AccumulatorOptions, accumulator
    from quant.methods.adaptive import AdaptiveOptions, adaptive
    from quant.methods.cluster import ClusterOptions, cluster
    from quant.methods.evolve import EvolveOptions, evolve
    from quant.methods.layerwise import LayerwiseOptions, layerwise
    from quant.methods.linear import linear
    from quant.methods.result import Result
    from quant.models import Preprocess, create_model
    from quant.splits import Splits

__all__ = [
    "AccumulatorOptions",
    "AdaptiveOptions",
    "Calibration",
    "ClusterOptions",
    "Dataset",
    "EvolveOptions",
    "FloatGraph",
    "Judge",
    "LayerBits",
    "LayerwiseOptions",
    "Preprocess",
    "QuantConfig",
    "Result",
    "Score",
    "Splits",
    "accumulator",
    "adaptive",
    "cluster",
    "create_model",
    "evolve",
    "import_onnx",
    "import_torch",
    "layerwise",
    "linear",
    "load_checkpoint",
    "load_dataset",
    "quantize_linear",
    "save_checkpoint",
    "shipped_checkpoint",
]

_MODULES = {
    "quant.checkpoints": ("load_checkpoint", "save_checkpoint", "shipped_checkpoint"),
    "quant.config": ("LayerBits", "QuantConfig"),
    "quant.datasets": ("Dataset", "load_dataset"),
    "quant.formats": ("Calibration",),
    "quant.graph": ("FloatGraph",),
    "quant.importers": ("import_onnx", "import_torch"),
    "quant.baseline": ("quantize_linear",),
    "quant.judge": ("Judge", "Score"),
    "quant.methods.accumulator": ("AccumulatorOptions", "accumulator"),
    "quant.methods.adaptive": ("AdaptiveOptions", "adaptive"),
    "quant.methods.cluster": ("ClusterOptions", "cluster"),
    "quant.methods.evolve": ("EvolveOptions", "evolve"),
    "quant.methods.layerwise": ("LayerwiseOptions", "layerwise"),
    "quant.methods.linear": ("linear",),
    "quant.methods.result": ("Result",),
    "quant.models": ("Preprocess", "create_model"),
    "quant.splits": ("Splits",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quant' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
