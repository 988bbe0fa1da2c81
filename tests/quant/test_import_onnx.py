"""ONNX files become the float graphs of the modules they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from quant import graph as fg
from quant.importers import import_onnx, import_torch
from tests.quant.nets import SPELLINGS, ZOO, RandomNet, export, images, randomise, run_onnx
from tests.quant.onnx_models import CONV, RNG, VECTOR, const, model, node, tail, write
from tests.support import shared_path


def assert_twin(
    folder: Path, module: nn.Module, shape: tuple[int, ...], opset: int, *, dynamic: bool = True
) -> None:
    """The module and its export are one graph, and ONNX Runtime computes the same."""
    data = export(module, shape, opset, dynamic=dynamic)
    graph = import_onnx(write(folder, data))
    assert fg.difference(import_torch(module, shape), graph) is None
    if dynamic and not graph.notes:
        x = images(shape)
        want = run_onnx(data, x)
        assert np.allclose(graph.evaluate(x), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str, opset: int, tmp_path: Path) -> None:
    assert_twin(tmp_path, *ZOO[name], opset)
    assert_twin(tmp_path, *ZOO[name], opset, dynamic=False)


@pytest.mark.parametrize("seed", range(20))
def test_random_networks(seed: int, tmp_path: Path) -> None:
    net = RandomNet(seed)
    assert_twin(tmp_path, net, net.size, 17)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str, tmp_path: Path) -> None:
    for module in SPELLINGS[name]:
        assert_twin(tmp_path, module, (3, 4, 4), 17)


@pytest.mark.parametrize(
    "name, nodes",
    [
        ("lenet5_cifar10", 13),
        ("lenet5_mnist", 13),
        ("resnet8_cifar10", 30),
        ("goyal-seq-mnist", 49),
        ("goyal-seq-cifar10", 49),
    ],
)
def test_shared_models(name: str, nodes: int) -> None:
    path = shared_path(f"models/{name}.onnx")
    graph = import_onnx(path)
    assert len(graph.nodes) == nodes
    x = images(graph.input_shape, 4)
    want = run_onnx(path.read_bytes(), x)
    assert np.allclose(graph.evaluate(x), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    if name.startswith("lenet5"):
        macs = [n.name for n in graph.mac_nodes]
        assert macs == ["conv1", "conv2", "fc1", "fc2", "fc3"]


HAND: dict[str, tuple[onnx.ModelProto, list[str]]] = {
    "relu": (model(tail("a", "Relu"), CONV), ["Conv", "Relu"]),
    "clip10": (model(tail("a", "Clip", min=0.0, max=6.0), CONV, opset=10), ["Conv", "Relu"]),
    "clip_max": (
        model(tail("a", "Clip", min=0.0, max=3.4028234663852886e38), CONV, opset=10),
        ["Conv", "Relu"],
    ),
    "clip_input": (model(tail("a", "Clip", "lo"), [*CONV, const("lo", 0.0)]), ["Conv", "Relu"]),
    "clip_both": (
        model(tail("a", "Clip", "lo", "hi"), [*CONV, const("lo", 0.0), const("hi", 1.5)], opset=21),
        ["Conv", "Relu"],
    ),
    "mean13": (
        model(tail("a", "ReduceMean", axes=[-1, -2], keepdims=0), CONV, opset=13),
        ["Conv", "GlobalAvgPool", "Flatten"],
    ),
    "mean18": (
        model(tail("a", "ReduceMean", "ax"), [*CONV, const("ax", [2, 3], np.int64)], opset=18),
        ["Conv", "GlobalAvgPool"],
    ),
    "max12": (
        model(tail("a", "ReduceMax", axes=[2, 3], keepdims=1), CONV, opset=12),
        ["Conv", "GlobalMaxPool"],
    ),
    "global_max": (model(tail("a", "GlobalMaxPool"), CONV), ["Conv", "GlobalMaxPool"]),
    "squeeze11": (
        model(
            [
                *tail("a", "GlobalAveragePool")[:1],
                node("GlobalAveragePool", ["a"], ["g"]),
                node("Squeeze", ["g"], ["y"], axes=[2, 3]),
            ],
            CONV,
            opset=11,
        ),
        ["Conv", "GlobalAvgPool", "Flatten"],
    ),
    "unsqueeze": (
        model(
            [
                node("Conv", ["x", "w", "b"], ["a"]),
                node("GlobalAveragePool", ["a"], ["g"]),
                node("Squeeze", ["g", "ax"], ["s"]),
                node("Unsqueeze", ["s", "ax"], ["u"]),
                node("Relu", ["u"], ["y"]),
            ],
            [*CONV, const("ax", [2, 3], np.int64)],
            opset=13,
        ),
        ["Conv", "GlobalAvgPool", "Relu"],
    ),
    "same_upper": (
        model([node("Conv", ["x", "w", "b"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], CONV),
        ["Conv"],
    ),
    "same_lower": (
        model([node("Conv", ["x", "w", "b"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])], CONV),
        ["Conv"],
    ),
    "same_pool": (
        model(
            tail("a", "AveragePool", auto_pad="SAME_UPPER", kernel_shape=[3, 2], strides=[2, 2]),
            CONV,
        ),
        ["Conv", "AvgPool"],
    ),
    "valid": (
        model(tail("a", "MaxPool", auto_pad="VALID", kernel_shape=[2, 2]), CONV),
        ["Conv", "MaxPool"],
    ),
    "ceil": (
        model(tail("a", "MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), CONV),
        ["Conv", "MaxPool"],
    ),
    "global_as_window": (
        model(tail("a", "AveragePool", kernel_shape=[4, 5]), CONV),
        ["Conv", "GlobalAvgPool"],
    ),
    "pad_conv": (
        model(
            [node("Pad", ["x", "p"], ["a"]), node("Conv", ["a", "w", "b"], ["y"], pads=[1] * 4)],
            [*CONV, const("p", [0, 0, 1, 0, 0, 0, 0, 1], np.int64)],
        ),
        ["Conv"],
    ),
    "pad10": (
        model(
            [
                node("Pad", ["x"], ["a"], pads=[0, 0, 1, 0, 0, 0, 0, 1]),
                node("Conv", ["a", "w", "b"], ["y"]),
            ],
            CONV,
            opset=10,
        ),
        ["Conv"],
    ),
    "pad_axes": (
        model(
            [node("Pad", ["x", "p", "", "ax"], ["a"]), node("Conv", ["a", "w", "b"], ["y"])],
            [*CONV, const("p", [2, 1], np.int64), const("ax", [-1], np.int64)],
            opset=18,
        ),
        ["Conv"],
    ),
    "same_after_pad": (
        model(
            [
                node("Pad", ["x", "p"], ["a"]),
                node("Conv", ["a", "w", "b"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2]),
            ],
            [*CONV, const("p", [0, 0, 0, 0, 0, 0, 1, 0], np.int64)],
        ),
        ["Conv"],
    ),
    "add_bias": (
        model(
            [node("Conv", ["x", "w"], ["a"]), node("Add", ["b", "a"], ["y"])],
            [CONV[0], const("b", RNG.normal(size=(3, 1, 1)))],
        ),
        ["Conv", "ChannelAffine"],
    ),
    "preprocessing": (
        model(
            [
                node("Sub", ["x", "m"], ["s"]),
                node("Div", ["s", "d"], ["t"]),
                node("Mul", ["t", "two"], ["u"]),
                node("Sub", ["two", "u"], ["v"]),
                node("Conv", ["v", "w", "b"], ["y"]),
            ],
            [*CONV, const("m", [[[0.5]], [[0.25]]]), const("d", 0.25), const("two", 2.0)],
        ),
        ["ChannelAffine"] * 4 + ["Conv"],
    ),
    "sum": (
        model(
            [
                node("Conv", ["x", "w", "b"], ["a"]),
                node("Relu", ["a"], ["r"]),
                node("Sum", ["a", "r", "r"], ["y"]),
            ],
            CONV,
        ),
        ["Conv", "Relu", "Add", "Add"],
    ),
    "concat": (
        model(
            [
                node("Conv", ["x", "w", "b"], ["a"]),
                node("Relu", ["a"], ["r"]),
                node("Concat", ["a", "r"], ["y"], axis=-3),
            ],
            CONV,
        ),
        ["Conv", "Relu", "Concat"],
    ),
    "dropout": (
        model(
            [
                node("Conv", ["x", "w", "b"], ["a"]),
                node("Dropout", ["a"], ["d", "mask"]),
                node("Identity", ["d"], ["y"]),
            ],
            CONV,
        ),
        ["Conv"],
    ),
    "gemm": (
        model([node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)], VECTOR, ("n", 5)),
        ["Linear"],
    ),
    "gemm_scalar": (
        model(
            [node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
            [const("w", RNG.normal(size=(4, 5))), const("b", [0.5])],
            ("n", 5),
        ),
        ["Linear"],
    ),
    "matmul": (
        model(
            [node("MatMul", ["x", "w"], ["a"]), node("Add", ["b", "a"], ["y"])], VECTOR, ("n", 5)
        ),
        ["Linear"],
    ),
    "matmul_transposed": (
        model(
            [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])],
            [const("w", RNG.normal(size=(4, 5)))],
            ("n", 5),
        ),
        ["Linear"],
    ),
    "constant_nodes": (
        model(
            [
                node("Constant", [], ["w"], value=VECTOR[0]),
                node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0, 4.0]),
                node("Gemm", ["x", "w", "b"], ["y"]),
            ],
            [],
            ("n", 5),
        ),
        ["Linear"],
    ),
    "reshape_batch_one": (
        model(
            [node("Conv", ["x", "w", "b"], ["a"]), node("Reshape", ["a", "s"], ["y"])],
            [*CONV, const("s", [1, -1], np.int64)],
            (1, 2, 6, 7),
        ),
        ["Conv", "Flatten"],
    ),
    "reshape_zero": (
        model(
            [node("Conv", ["x", "w", "b"], ["a"]), node("Reshape", ["a", "s"], ["y"])],
            [*CONV, const("s", [0, 60], np.int64)],
        ),
        ["Conv", "Flatten"],
    ),
    "reshape_shape": (
        model(
            [
                node("Conv", ["x", "w", "b"], ["a"]),
                node("Shape", ["a"], ["sh"]),
                node("Slice", ["sh", "zero", "one"], ["n"]),
                node("Concat", ["n", "minus"], ["s"], axis=0),
                node("Reshape", ["a", "s"], ["y"]),
            ],
            [
                *CONV,
                const("zero", [0], np.int64),
                const("one", [1], np.int64),
                const("minus", [-1], np.int64),
            ],
        ),
        ["Conv", "Flatten"],
    ),
    "flatten_negative": (model(tail("a", "Flatten", axis=-3), CONV), ["Conv", "Flatten"]),
    "batch_norm": (
        model(
            tail("a", "BatchNormalization", "b", "b", "b", "v", epsilon=0.01),
            [*CONV, const("v", [1.0, 2.0, 0.5])],
            opset=15,
        ),
        ["Conv", "ChannelAffine"],
    ),
}


@pytest.mark.parametrize("name", HAND)
def test_operators_against_onnxruntime(name: str, tmp_path: Path) -> None:
    proto, kinds = HAND[name]
    graph = import_onnx(write(tmp_path, proto))
    assert [type(n).__name__ for n in graph.nodes[1:]] == kinds
    x = images(graph.input_shape, 1)
    want = run_onnx(proto, x)
    got = graph.evaluate(x)
    assert got.shape == want.shape
    assert np.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_names_and_softmax(tmp_path: Path) -> None:
    names = ["/block/conv/Conv", "/block/Relu", "/act/Relu", "/act/Relu_1", "", "input"]
    ops = ["Conv", "Relu", "Relu", "Relu", "Identity", "Flatten"]
    tensors = ["x", "a", "b", "c", "d", "e", "f"]
    nodes = [
        node(
            op,
            [tensors[i], "w", "b0"] if op == "Conv" else [tensors[i]],
            [tensors[i + 1]],
            names[i],
        )
        for i, op in enumerate(ops)
    ]
    nodes.append(node("Softmax", ["f"], ["y"], "soft", axis=-1))
    graph = import_onnx(write(tmp_path, model(nodes, [CONV[0], const("b0", [1, 2, 3])])))
    assert [n.name for n in graph.nodes] == [
        "input",
        "block.conv",
        "block.Relu",
        "act",
        "act_1",
        "input_flatten",
    ]
    assert graph.notes == ("Softmax at the output was dropped: it keeps the order of the classes",)


def test_batch_norm_of_older_exports_is_exact(tmp_path: Path) -> None:
    """A network with a batch norm of its own epsilon, in half precision storage."""
    module = randomise(nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3, eps=0.3)), 1)
    assert_twin(tmp_path, module, (1, 3, 3), 12)
    half = model(tail("a", "Cast", to=1), [const("w", np.ones((3, 2, 3, 3)), np.float16)])
    half.graph.node[0].input.pop()
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert import_onnx(write(tmp_path, half)).mac_nodes[0].weight.sum() == 54


def test_torch_and_file_agree_in_every_opset(tmp_path: Path) -> None:
    module, shape = ZOO["depthwise"]
    want = import_torch(module, shape)
    for opset in range(11, 21):
        graph = import_onnx(write(tmp_path, export(module, shape, opset)))
        assert fg.difference(want, graph) is None
    assert torch.is_grad_enabled()
