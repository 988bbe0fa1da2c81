"""Folding changes no result, folds what can be folded exactly, and says what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from quant import graph as fg
from quant.importers import fold, import_onnx, import_torch
from tests.quant.nets import ZOO, Func, RandomNet, images, randomise, run_onnx
from tests.support import shared_path


def folded(module: nn.Module, shape: tuple[int, ...]) -> fg.FloatGraph:
    """The folded graph, which computes what the graph does."""
    graph = import_torch(module.eval(), shape)
    result = fold(graph)
    x = images(shape, 4).double()
    want = graph.evaluate(x)
    assert np.allclose(result.evaluate(x), want, rtol=1e-11, atol=1e-11 * np.abs(want).max())
    assert fold(result).same_up_to_names(result)
    return result


def kinds(graph: fg.FloatGraph) -> list[str]:
    return [type(n).__name__ for n in graph.nodes[1:]]


def positive(module: nn.Module) -> nn.Module:
    """The module with batch norms of positive scale."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm1d)) and part.affine:
            part.weight.data.abs_()
    return module


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    folded(*ZOO[name])


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    net = RandomNet(1000 + seed)
    folded(net, net.size)


CONV = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)]
VALID, PADDED = nn.Conv2d(4, 2, 2), nn.Conv2d(4, 2, 2, padding=1)
GROUPED = nn.Conv2d(4, 8, 2, groups=2)
FLAT = [nn.Flatten(), nn.Linear(64, 3)]

CASES: dict[str, tuple[list[nn.Module], list[str]]] = {
    "before relu": ([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()], ["Conv", "Relu"]),
    "no bias": ([nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)], ["Conv"]),
    "two": ([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)], ["Conv"]),
    "two after relu": ([*CONV, nn.BatchNorm2d(4), PADDED], ["Conv", "Relu", "ChannelAffine", "Conv"]),
    "linear": ([nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)], ["Flatten", "Linear"]),
    "into conv": ([*CONV, VALID], ["Conv", "Relu", "Conv"]),
    "into groups": ([*CONV, GROUPED], ["Conv", "Relu", "Conv"]),
    "padded": ([*CONV, PADDED], ["Conv", "Relu", "ChannelAffine", "Conv"]),
    "into linear": ([*CONV, *FLAT], ["Conv", "Relu", "Flatten", "Linear"]),
    "through max": ([*CONV, nn.MaxPool2d(3, 1, 1), VALID], ["Conv", "Relu", "MaxPool", "Conv"]),
    "through average": ([*CONV, nn.AvgPool2d(2), VALID], ["Conv", "Relu", "AvgPool", "Conv"]),
    "average inside": ([*CONV, nn.AvgPool2d(3, 1, 1, count_include_pad=False), VALID],
                       ["Conv", "Relu", "AvgPool", "Conv"]),
    "average of padding": ([*CONV, nn.AvgPool2d(3, 1, 1), VALID],
                           ["Conv", "Relu", "ChannelAffine", "AvgPool", "Conv"]),
    "through global": ([*CONV, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)],
                       ["Conv", "Relu", "GlobalAvgPool", "Flatten", "Linear"]),
    "moves to the relu": ([*CONV[:2], nn.MaxPool2d(2), nn.BatchNorm2d(4), PADDED],
                          ["Conv", "Relu", "ChannelAffine", "MaxPool", "Conv"]),
    "moves and folds": ([CONV[0], nn.MaxPool2d(2), nn.BatchNorm2d(4), PADDED],
                        ["Conv", "MaxPool", "Conv"]),
    "preprocessing": ([nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3)], ["Conv"]),
    "padded preprocessing": ([nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, padding=1)],
                             ["ChannelAffine", "Conv"]),
    "at the end": (CONV, ["Conv", "Relu", "ChannelAffine"]),
    "relus": ([nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.ReLU()], ["Conv", "Relu"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    layers, want = CASES[name]
    graph = folded(positive(randomise(nn.Sequential(*layers), 0)), (1, 6, 6))
    assert kinds(graph) == want
    kept = [n for n in graph.nodes if isinstance(n, fg.ChannelAffine)]
    for node in kept:
        assert any(f"'{node.name}' stays" in note for note in graph.notes)


def test_relu_keeps_the_lower_maximum() -> None:
    graph = folded(randomise(nn.Sequential(*CASES["relus"][0]), 0), (1, 6, 6))
    relu = graph.nodes[-1]
    assert isinstance(relu, fg.Relu)
    assert relu.max == 6.0


def test_negative_scales_do_not_pass_a_max_pool() -> None:
    net = positive(randomise(nn.Sequential(*CONV, nn.MaxPool2d(2), VALID), 0))
    net[2].weight.data[1] *= -1
    graph = folded(net, (1, 6, 6))
    assert kinds(graph) == ["Conv", "Relu", "ChannelAffine", "MaxPool", "Conv"]
    assert graph.notes == (
        "'2' stays a per-channel affine: '3' takes maxima, and a scale is negative",
    )
    late = nn.Sequential(*CONV[:2], nn.MaxPool2d(2), net[2], PADDED)
    assert kinds(folded(late, (1, 6, 6))) == ["Conv", "Relu", "MaxPool", "ChannelAffine", "Conv"]


def test_a_scale_without_offset_passes_zero_padding() -> None:
    net = positive(randomise(nn.Sequential(*CONV, nn.AvgPool2d(2, 1, 1), PADDED), 0))
    net[2].bias.data.zero_()
    net[2].running_mean.zero_()
    assert kinds(folded(net, (1, 6, 6))) == ["Conv", "Relu", "AvgPool", "Conv"]


def test_identity_goes() -> None:
    net = nn.Sequential(CONV[0], nn.ReLU(), nn.BatchNorm2d(4, eps=0.0), PADDED)
    net[2].reset_parameters()
    graph = folded(net, (1, 6, 6))
    assert kinds(graph) == ["Conv", "Relu", "Conv"]
    assert graph.notes == ("'2' changes nothing and was removed",)


def test_tensors_with_several_readers_stay() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.conv(x)
        b = m.bn(a)
        return m.after(F.relu(a) + F.relu(b) + m.bn2(F.relu(b)))

    net = Func(
        forward,
        conv=nn.Conv2d(1, 4, 3),
        bn=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
        after=nn.Conv2d(4, 1, 1),
    )
    graph = folded(randomise(net, 3), (1, 6, 6))
    assert sum(k == "ChannelAffine" for k in kinds(graph)) == 2


def test_output_of_an_affine_may_be_the_result() -> None:
    graph = folded(randomise(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0), (3,))
    assert (graph.output, kinds(graph)) == ("0", ["Linear"])


@pytest.mark.parametrize(
    "name, affines",
    [("resnet8_cifar10", 0), ("goyal-seq-mnist", 13), ("goyal-seq-cifar10", 13)],
)
def test_shared_models(name: str, affines: int) -> None:
    path = shared_path(f"models/{name}.onnx")
    graph = fold(import_onnx(path))
    assert sum(isinstance(n, fg.ChannelAffine) for n in graph.nodes) == affines
    for node in graph.nodes:
        if isinstance(node, fg.ChannelAffine):
            assert isinstance(graph.node(node.inputs[0]), fg.Relu)
    x = images(graph.input_shape, 4)
    want = run_onnx(path.read_bytes(), x)
    got = graph.evaluate(x, dtype=torch.float32)
    assert np.allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
