"""PyTorch modules become float graphs that compute the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hwgen.errors import BadInput, BadNetwork, UnsupportedLayer
from quant import graph as fg
from quant.importers import import_torch
from quant.models import LeNet5
from tests.quant.nets import SPELLINGS, ZOO, Func, RandomNet, images, randomise


def assert_same(module: nn.Module, shape: tuple[int, ...]) -> fg.FloatGraph:
    """The graph of the module in float64 computes what the module does."""
    module = copy.deepcopy(module).double().eval()
    graph = import_torch(module, shape)
    x = images(shape).double()
    with torch.no_grad():
        want = module(x.clone()).numpy()
    got = graph.evaluate(x)
    if any("softmax" in note for note in graph.notes):
        got = torch.softmax(torch.tensor(got), 1).numpy()
    assert got.shape == want.shape
    # Batch norm's epsilon is float32 in the graph, as in ONNX.
    assert np.allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
    return graph


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    assert_same(*ZOO[name])


@pytest.mark.parametrize("seed", range(20))
def test_random_networks(seed: int) -> None:
    net = RandomNet(seed)
    assert_same(net, net.size)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_one_network_are_one_graph(name: str) -> None:
    graphs = [assert_same(module, (3, 4, 4)) for module in SPELLINGS[name]]
    for graph in graphs[1:]:
        assert fg.difference(graphs[0], graph) is None


def test_names_are_those_of_the_modules() -> None:
    graph = import_torch(LeNet5(in_channels=1), (1, 32, 32))
    kinds = [type(n).__name__ for n in graph.nodes]
    assert kinds == [
        "Input", "Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Flatten",
        "Linear", "Relu", "Linear", "Relu", "Linear",
    ]  # fmt: skip
    assert [n.name for n in graph.mac_nodes] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Flatten(), nn.Linear(4, 2))
    assert import_torch(nested, (1, 2, 2)).mac_nodes[0].name == "0.0"


def test_the_module_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).train()
    module[2].eval()
    before = copy.deepcopy(module.state_dict())
    import_torch(module, (1, 2, 2))
    assert [m.training for m in module.modules()] == [True, True, True, False]
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_in_place_operations_change_every_name_of_a_tensor() -> None:
    conv = randomise(nn.Conv2d(2, 2, 1), 0)

    def relu_then_both(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = F.relu(y, inplace=True)
        return y + z

    def through_dropout(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = F.dropout(y, training=False)
        z.relu_()
        return y + z

    def copied(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y.clone()
        z.relu_()
        return y + z

    def accumulated(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = F.relu(y)
        y += z
        return y

    def through_view(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        y.view(-1, 8).relu_()
        return y

    for forward in (relu_then_both, through_dropout, copied, accumulated):
        assert_same(Func(forward, conv=conv), (2, 2, 2))
    with pytest.raises(UnsupportedLayer, match="in place"):
        import_torch(Func(through_view, conv=conv), (2, 2, 2))


def test_constants_of_a_module() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, bias=False)
            self.register_buffer("mask", (torch.arange(54).view(3, 2, 3, 3) % 3 > 0).float())
            self.register_buffer("mean", torch.tensor([0.5, -0.25]).view(1, 2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = 2 - (x - self.mean) / 0.25 * torch.tensor([[[1.0]], [[3.0]]])
            return F.conv2d(x, self.conv.weight * self.mask)

    masked = Masked()
    randomise(masked.conv, 0)
    graph = assert_same(masked, (2, 5, 5))
    assert sum(isinstance(n, fg.ChannelAffine) for n in graph.nodes) == 4
    assert not graph.mac_nodes[0].weight.reshape(-1)[::3].any()

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert_same(layer, (4,))


def test_padding_layers_join_the_next_window() -> None:
    net = nn.Sequential(
        nn.ZeroPad2d((1, 0, 0, 1)),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.ReLU(),
        nn.ConstantPad2d(1, 0.0),
        nn.MaxPool2d(3, 2),
        nn.ZeroPad2d(1),
        nn.AvgPool2d(2),
    )
    graph = assert_same(randomise(net, 0), (1, 7, 7))
    conv, pool = graph.mac_nodes[0], graph.nodes[3]
    assert isinstance(conv, fg.Conv)
    assert conv.padding == (1, 2, 2, 1)
    assert isinstance(pool, fg.MaxPool)
    assert pool.padding == (1, 1, 1, 1)
    assert import_torch(nn.Conv2d(1, 1, (2, 4), padding="same"), (1, 8, 8)).mac_nodes[
        0
    ].padding == (0, 1, 1, 2)  # type: ignore[union-attr]


def test_softmax_at_the_end_is_dropped_and_noted() -> None:
    for last in (nn.Softmax(dim=1), nn.LogSoftmax(dim=-1)):
        graph = import_torch(nn.Sequential(nn.Linear(3, 2), last), (3,))
        assert graph.output == "0"
        assert "softmax" in graph.notes[0]


REFUSED: dict[str, tuple[Any, tuple[int, ...], list[str]]] = {
    "activation": (nn.LeakyReLU(), (2, 4, 4), ["'last' (nn.LeakyReLU)", "use ReLU"]),
    "sigmoid": (nn.Sigmoid(), (2, 4, 4), ["nn.Sigmoid", "use ReLU"]),
    "hardtanh": (nn.Hardtanh(), (2, 4, 4), ["clips to -1.0..1.0", "ReLU6"]),
    "dilation": (nn.Conv2d(2, 2, 3, dilation=2), (2, 8, 8), ["dilation (2, 2)", "use dilation 1"]),
    "transposed": (nn.ConvTranspose2d(2, 2, 2), (2, 4, 4), ["nn.ConvTranspose2d", "upsampling"]),
    "reflect": (nn.ReflectionPad2d(1), (2, 4, 4), ["nn.ReflectionPad2d"]),
    "wide padding": (nn.Conv2d(2, 2, 1, padding=1), (2, 4, 4), ["(1, 1, 1, 1)", "1x1 kernel"]),
    "crop": (nn.ZeroPad2d(-1), (2, 4, 4), ["crops"]),
    "lone padding": (nn.ZeroPad2d(1), (2, 4, 4), ["(output)", "padded"]),
    "padded one": (nn.ConstantPad2d(1, 1.0), (2, 4, 4), ["pads with 1.0", "pad with 0"]),
    "negative maxima": (
        nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2)), (2, 4, 4), ["after a ReLU"],
    ),
    "group norm": (nn.GroupNorm(1, 2), (2, 4, 4), ["use batch norm"]),
    "instance norm": (nn.InstanceNorm2d(2), (2, 4, 4), ["InstanceNorm2d", "use batch norm"]),
    "batch statistics": (
        nn.BatchNorm2d(2, track_running_stats=False), (2, 4, 4), ["running statistics"],
    ),
    "adaptive": (nn.AdaptiveAvgPool2d(3), (2, 4, 4), ["3x3 does not divide"]),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 4, 4), ["divides by 3"]),
    "linear on images": (nn.Linear(4, 4), (2, 4, 4), ["put a flatten"]),
    "softmax of images": (nn.Softmax(dim=1), (2, 4, 4), ["normalises axis 1"]),
    "softmax inside": (nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.Linear(32, 2)), (2, 4, 4),
                       ["only as the last node", "remove the softmax"]),
    "transpose": (Func(lambda m, x: x.permute(0, 2, 3, 1)), (2, 4, 4),
                  ["permute", "(N, channels"]),
    "batch": (Func(lambda m, x: x.reshape(1, -1)), (2, 4, 4), ["joins images", "flatten(1)"]),
    "product": (Func(lambda m, x: x * x), (2, 4, 4), ["two activations"]),
    "broadcast": (Func(lambda m, x: x + x.mean((2, 3), keepdim=True)), (2, 4, 4),
                  ["(2, 4, 4) and (2, 1, 1)"]),
    "one axis": (Func(lambda m, x: x.mean(2)), (2, 4, 4), ["reduces the axes (2,)", "(2, 3)"]),
    "all axes": (Func(lambda m, x: x.mean()), (2, 4, 4), ["reduces all axes"]),
    "wrong axis": (Func(lambda m, x: torch.cat([x, x], 2)), (2, 4, 4), ["axis 2", "axis 1"]),
    "map": (Func(lambda m, x: x + torch.ones(4, 4)), (2, 4, 4), ["varies by position"]),
    "dropout": (Func(lambda m, x: F.dropout(x)), (2, 4, 4), ["at random", "self.training"]),
    "indices": (Func(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[1].float()), (2, 4, 4),
                ["second result"]),
    "part": (Func(lambda m, x: x[:, :1]), (2, 4, 4), ["cuts a part"]),
    "alpha": (Func(lambda m, x: torch.add(x, x, alpha=2)), (2, 4, 4), ["alpha 2"]),
    "view left": (Func(lambda m, x: x.flatten(2)), (2, 4, 4), ["reshaped", "(2, 16)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_where_why_and_what_to_do(name: str) -> None:
    last, shape, wanted = REFUSED[name]
    module = nn.Sequential()
    module.add_module("first", nn.Conv2d(2, 2, 1))
    module.add_module("last", last)
    with pytest.raises(UnsupportedLayer) as caught:
        import_torch(module, shape)
    message = str(caught.value)
    assert message.startswith("1 problem keeps")
    assert all(text in message for text in wanted), message


def test_all_problems_in_one_message() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, dilation=2),
        nn.SiLU(),
        nn.GroupNorm(1, 2),
        nn.ConvTranspose2d(2, 2, 2),
        nn.Conv2d(2, 1, 1),
        nn.Tanh(),
    )
    with torch.no_grad():
        net[4].bias.fill_(np.inf)
    with pytest.raises(UnsupportedLayer) as caught:
        import_torch(net, (1, 8, 8))
    message = str(caught.value)
    assert message.startswith("6 problems keep")
    for part in ("'0' (nn.Conv2d)", "'1' (nn.SiLU)", "'2' (nn.GroupNorm)", "'3'", "'5' (nn.Tanh)"):
        assert part in message
    assert "tensor '4.bias': weights must be finite, and 1 of 1" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        net[0].weight[1, 0, 0, 0] = value
        net[1].running_mean[0] = value
    with pytest.raises(BadNetwork) as caught:
        import_torch(net, (1, 2, 2))
    assert "tensor '0.weight'" in str(caught.value)
    assert "(1, 0, 0, 0)" in str(caught.value)
    assert "tensor '1.running_mean'" in str(caught.value)


def test_modules_that_are_no_network() -> None:
    with pytest.raises(BadNetwork, match="at least one convolution or linear"):
        import_torch(nn.ReLU(), (1, 2, 2))
    with pytest.raises(BadNetwork, match=r"does not run on a tensor \(2, 1, 2, 2\)"):
        import_torch(nn.Conv2d(3, 1, 1), (1, 2, 2))
    with pytest.raises(BadInput, match=r"must be a torch\.nn\.Module, not str"):
        import_torch("model.pt", (1, 2, 2))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="input shape"):
        import_torch(nn.ReLU(), (2, 2))
    with pytest.raises(BadNetwork, match="one tensor, not 2"):
        import_torch(Func(lambda m, x: (x, m.c(x)), c=nn.Conv2d(1, 1, 1)), (1, 2, 2))
    with pytest.raises(UnsupportedLayer, match=r"cannot be traced.*decisions"):
        import_torch(
            Func(lambda m, x: m.c(x) if x.sum() > 0 else x, c=nn.Conv2d(1, 1, 1)), (1, 2, 2)
        )
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    net[1].running_var.fill_(-1.0)
    with pytest.raises(BadNetwork, match=r"variance \+ epsilon must be positive"):
        import_torch(net, (1, 2, 2))


def test_control_flow_on_shapes_and_dictionaries() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        assert x.shape[1] == 1
        for _ in range(x.shape[2] - 1):
            x = m.conv(x)
        return x if x.size(-1) > 2 else F.relu(x)

    graph = assert_same(Func(forward, conv=nn.Conv2d(1, 1, 2)), (1, 3, 3))
    assert [n.name for n in graph.nodes] == ["input", "conv", "conv_1", "relu"]
