"""Float networks in: PyTorch modules and ONNX files become the same float graph."""

from quant.importers.fold import fold
from quant.importers.onnx_model import import_onnx
from quant.importers.torch_module import import_torch

__all__ = ["fold", "import_onnx", "import_torch"]
