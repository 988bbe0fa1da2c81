"""The smallest change that gets rid of an operator the float graph does not have."""

from __future__ import annotations

__all__ = ["change_for"]

_RELU = "use ReLU or ReLU6 instead and train again"
_NORM = "use batch norm instead and train again"
_LAYOUT = "keep tensors as (N, channels, height, width), and export with that layout"
_FLOAT = "give the float network, before quantisation"
_END = "remove it: the network ends with the logits, and the class is taken from those"
_CONTROL = "export the network without control flow"

_CHANGES = {
    _RELU: """
        leakyrelu prelu elu celu selu gelu silu swish hardswish mish tanh hardtanh softplus softsign
        thresholdedrelu hardsigmoid sigmoid""",
    _NORM: """
        layernorm layernormalization groupnorm groupnormalization instancenorm instancenormalization
        lrn localresponsenorm rmsnorm lpnormalization""",
    _LAYOUT: "transpose permute t swapaxes movedim depthtospace spacetodepth",
    _FLOAT: """
        quantizelinear dequantizelinear qlinearconv qlinearmatmul convinteger matmulinteger
        dynamicquantizelinear quantizepertensor qgemm""",
    _END: "argmax topk max hardmax",
    _CONTROL: "if loop scan cond whileloop",
    "use a network that classifies: upsampling does not convert": "convtranspose convtranspose2d",
    "replace the product of two activations by a sum or a concatenation": "mul",
    "divide by a constant": "div",
    "fold the sign into the layer before, and add": "sub",
    "use Conv2d with a height of 1": "conv1d",
    "use the mean, and fold the factor into the next layer": "sum reducesum",
    "give each part of the tensor a layer of its own": "slice split chunk",
    "remove the random operation, or make it depend on self.training": "rand randlike bernoulli",
}

_BY_OPERATOR = {name: change for change, names in _CHANGES.items() for name in names.split()}

_DEFAULT = (
    "replace it: convolution, linear, batch norm, ReLU, ReLU6, max, average and global pools,"
    " flatten, dropout, add and concatenation convert"
)


def change_for(operator: str) -> str:
    """What to do about ``operator``, whose name may be ONNX's or torch's."""
    return _BY_OPERATOR.get(operator.replace("_", "").lower(), _DEFAULT)
