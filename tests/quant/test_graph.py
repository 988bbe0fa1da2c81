"""The float graph: nodes against torch and ONNX Runtime, and its checks."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.helper
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from hwgen.errors import BadInput, BadNetwork
from quant import graph as fg
from tests.quant.nets import images, run_onnx


def _small(**changes: object) -> fg.FloatGraph:
    rng = np.random.default_rng(0)
    conv = fg.Conv(
        name="conv", inputs=("input",), weight=rng.normal(size=(4, 2, 3, 3)), bias=np.ones(4)
    )
    nodes: tuple[fg.Node, ...] = (
        fg.Input(name="input", inputs=(), size=(2, 5, 6)),
        conv,
        fg.Relu(name="relu", inputs=("conv",)),
        fg.Flatten(name="flat", inputs=("relu",)),
        fg.Linear(
            name="fc", inputs=("flat",), weight=rng.normal(size=(3, 48)), bias=rng.normal(size=3)
        ),
    )
    return fg.FloatGraph(**{"nodes": nodes, "output": "fc", **changes})  # type: ignore[arg-type]


def test_shapes_readers_and_values() -> None:
    graph = _small()
    assert [graph.shape(n.name) for n in graph.nodes] == [
        (2, 5, 6),
        (4, 3, 4),
        (4, 3, 4),
        (48,),
        (3,),
    ]
    assert (graph.input_shape, graph.output_shape) == ((2, 5, 6), (3,))
    assert [n.name for n in graph.mac_nodes] == ["conv", "fc"]
    assert [n.name for n in graph.consumers("conv")] == ["relu"]
    assert graph.geometry("conv").out_width == 4
    with pytest.raises(BadNetwork, match="no windows"):
        graph.geometry("fc")
    x = images((2, 5, 6), 5)
    conv, fc = graph.mac_nodes
    y = F.relu(F.conv2d(x.double(), torch.tensor(conv.weight), torch.tensor(conv.bias)))
    want = F.linear(y.flatten(1), torch.tensor(fc.weight), torch.tensor(fc.bias)).numpy()
    assert np.array_equal(graph.evaluate(x, batch_size=5), want)
    assert np.allclose(graph.evaluate(x.numpy(), batch_size=2), want, atol=1e-12)
    single = graph.evaluate(x, dtype=torch.float32)
    assert single.dtype == np.float32
    assert np.allclose(single, want, atol=1e-4)
    batches = list(graph.activations(x, batch_size=2))
    assert [len(b["fc"]) for b in batches] == [2, 2, 1]
    assert set(batches[0]) == {n.name for n in graph.nodes}
    assert np.allclose(torch.cat([b["fc"] for b in batches]).numpy(), want, atol=1e-12)


def test_constants_are_copies_that_cannot_change() -> None:
    weight = np.ones((1, 2))
    node = fg.Linear(name="fc", inputs=("input",), weight=weight, bias=np.zeros(1))
    weight[0, 0] = 5
    assert node.weight[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        node.weight[0, 0] = 2


@pytest.mark.parametrize("kind", ["max", "avg", "avg_inside"])
def test_pools_agree_with_torch_and_onnxruntime(kind: str) -> None:
    """All sizes, strides, paddings, ceil modes: the three never differ, nor do the shapes."""
    inside = kind == "avg_inside"
    for size, kernel, stride, ceil in itertools.product(
        (4, 5, 7), (2, 3), (1, 2, 3), (False, True)
    ):
        for pad in range(kernel):
            fields = {
                "name": "pool",
                "inputs": ("input",),
                "kernel": (kernel, kernel),
                "stride": (stride, stride),
                "padding": (pad,) * 4,
                "ceil_mode": ceil,
            }
            x = images((2, size, size + 1), 1, seed=size)
            if kind == "max":
                node: fg.Node = fg.MaxPool(**fields)  # type: ignore[arg-type]
            else:
                node = fg.AvgPool(**fields, count_include_pad=not inside)  # type: ignore[arg-type]
            got = node.evaluate(x)
            assert tuple(got.shape[1:]) == node.shape((2, size, size + 1))
            if pad <= kernel // 2:
                if kind == "max":
                    want = F.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil)
                else:
                    want = F.avg_pool2d(x, kernel, stride, pad, ceil, not inside)
                assert torch.allclose(got, want, atol=1e-6), fields
            if (size, stride) == (7, 2):
                model = _one_pool("MaxPool" if kind == "max" else "AveragePool", fields, inside)
                assert np.allclose(got.numpy(), run_onnx(model, x), atol=1e-6), fields


def _one_pool(operator: str, fields: dict[str, object], inside: bool) -> onnx.ModelProto:
    extra = {} if operator == "MaxPool" else {"count_include_pad": int(not inside)}
    node = onnx.helper.make_node(
        operator,
        ["x"],
        ["y"],
        kernel_shape=fields["kernel"],
        strides=fields["stride"],
        pads=fields["padding"],
        ceil_mode=int(bool(fields["ceil_mode"])),
        **extra,
    )
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "pool",
        [info("x", 1, ["n", 2, 7, 8])],
        [info("y", 1, ["n", 2, None, None])],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10
    )


def test_asymmetric_padding() -> None:
    x = images((2, 5, 6), 2).double()
    weight, bias = torch.randn(3, 2, 3, 3).double(), torch.zeros(3).double()
    node = fg.Conv(
        name="c",
        inputs=("input",),
        weight=weight.numpy(),
        bias=bias.numpy(),
        stride=(2, 1),
        padding=(0, 2, 1, 0),
    )
    want = F.conv2d(F.pad(x, (2, 0, 0, 1)), weight, bias, (2, 1))
    assert torch.allclose(node.evaluate(x), want, atol=1e-12)
    assert node.shape((2, 5, 6)) == tuple(want.shape[1:])


_X: dict[str, object] = {"name": "n", "inputs": ("input",)}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fg.Conv(**_X, weight=np.ones((2, 2)), bias=np.ones(2)), "4 axes"),
        (
            lambda: fg.Conv(**_X, weight=np.ones((2, 2, 1, 1)), bias=np.ones(3)),
            r"\(2,\), not \(3,\)",
        ),
        (lambda: fg.Conv(**_X, weight=np.ones((2, 2, 1, 1)), bias=np.ones(2), groups=3), "divide"),
        (lambda: fg.Linear(**_X, weight=np.ones((2, 2)), bias=np.ones(3)), "its bias"),
        (
            lambda: fg.Linear(**_X, weight=[[np.nan]], bias=[0.0]),
            r"finite and holds nan at \(0, 0\)",
        ),
        (lambda: fg.ChannelAffine(**_X, scale=[1.0], offset=[1.0, 2.0]), "1 scales and 2"),
        (lambda: fg.Relu(**_X, max=0.0), "positive"),
        (lambda: fg.Input(name="input", inputs=(), size=(1, 2)), "must be"),
        (lambda: fg.Input(name="input", inputs=(), size=(2**30,)), "more than"),
        (lambda: fg.Add(**_X), "must take 2"),
        (lambda: fg.Flatten(name="", inputs=("input",)), "name"),
    ],
)
def test_nodes_refuse(make: object, message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        make()  # type: ignore[operator]


def test_shapes_refuse() -> None:
    conv = fg.Conv(**_X, weight=np.ones((2, 3, 3, 3)), bias=np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(BadNetwork, match="3 channels, not 2"):
        conv.shape((2, 5, 5))
    with pytest.raises(BadNetwork, match="does not fit"):
        conv.shape((3, 2, 5))
    with pytest.raises(BadNetwork, match="needs an image"):
        conv.shape((3,))
    linear = fg.Linear(**_X, weight=np.ones((2, 3)), bias=np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(BadNetwork, match="vector of 3"):
        linear.shape((3, 1, 1))
    pair: dict[str, object] = {"name": "n", "inputs": ("a", "b")}
    with pytest.raises(BadNetwork, match="one shape"):
        fg.Add(**pair).shape((1, 2, 2), (1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(BadNetwork, match="only in channels"):
        fg.Concat(**pair).shape((1, 2, 2), (1, 2, 3))  # type: ignore[arg-type]


def test_graphs_refuse() -> None:
    nodes = _small().nodes
    with pytest.raises(BadNetwork, match="no earlier node"):
        _small(nodes=(nodes[0], nodes[2], nodes[1], *nodes[3:]))
    with pytest.raises(BadNetwork, match="must be an Input"):
        _small(nodes=nodes[1:])
    with pytest.raises(BadNetwork, match="not a node"):
        _small(output="none")
    with pytest.raises(BadNetwork, match="lead to no output: flat"):
        _small(nodes=nodes[:4], output="relu")
    with pytest.raises(BadNetwork, match="two nodes"):
        _small(nodes=(*nodes[:2], nodes[1], *nodes[2:]))
    with pytest.raises(BadNetwork, match="at least one convolution"):
        _small(nodes=(nodes[0], fg.Relu(name="relu", inputs=("input",))), output="relu")
    with pytest.raises(BadNetwork, match="no node 'x'"):
        _small().node("x")
    with pytest.raises(BadInput, match="takes images"):
        _small().evaluate(np.zeros((1, 2, 5, 5)))
    with pytest.raises(BadInput, match="N at least 1"):
        _small().evaluate(np.zeros((0, 2, 5, 6)))


def test_difference_sees_everything_but_names() -> None:
    a = _small()
    assert a.same_up_to_names(_small())
    renamed = _small(
        nodes=(
            *a.nodes[:4],
            fg.Linear(name="z", inputs=("flat",), weight=a.nodes[4].weight, bias=a.nodes[4].bias),
        ),  # type: ignore[attr-defined]
        output="z",
    )
    assert a.same_up_to_names(renamed)
    other = _small(
        nodes=(*a.nodes[:2], fg.Relu(name="relu", inputs=("conv",), max=6.0), *a.nodes[3:])
    )
    assert not a.same_up_to_names(other)
