"""Any float ONNX file: python examples/onnx_file.py MODEL.onnx [mnist|cifar10|digits] [DATA_DIR]."""

import sys
from pathlib import Path

from hwgen import flow

name = sys.argv[2] if len(sys.argv) > 2 else "digits"
data = flow.load_dataset(name, data_dir=Path(sys.argv[3]) if len(sys.argv) > 3 else None)
model = flow.load_model(sys.argv[1], data=data)
for bits in ("8", "6", "4"):
    network = flow.quantize(model, data, flow.quant_config(bits))
    print(f"{bits} bits: {flow.integer_accuracy(network, data):.2%}")
