"""ONNX files that cannot be read are refused: where, why, and what to change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwgen.errors import BadInput, BadNetwork, HwgenError, UnsupportedLayer
from quant.importers import import_onnx
from tests.quant.onnx_models import CONV, VECTOR, const, model, node, tail, write


def _refused(
    folder: Path, proto: onnx.ModelProto | bytes, kind: type[HwgenError], *texts: str
) -> str:
    with pytest.raises(kind) as caught:
        import_onnx(write(folder, proto))
    message = str(caught.value)
    assert type(caught.value) is kind, message
    for text in texts:
        assert text in message, message
    return message


P_LONG = const("p", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
REFUSED: dict[str, tuple[onnx.ModelProto, list[str]]] = {
    "leaky": (model(tail("a", "LeakyRelu"), CONV), ["node 'op' (LeakyRelu)", "use ReLU"]),
    "clip": (model(tail("a", "Clip", "lo"), [*CONV, const("lo", -1.0)]), ["clips to -1.0..inf"]),
    "dilation": (
        model([node("Conv", ["x", "w", "b"], ["y"], "c", dilations=[2, 2])], CONV),
        ["node 'c' (Conv)", "dilation (2, 2)"],
    ),
    "pads": (
        model([node("Conv", ["x", "w", "b"], ["y"], pads=[3, 0, 0, 0])], CONV),
        ["3x3 kernel"],
    ),
    "reflect": (
        model(
            [node("Pad", ["x", "p"], ["a"], mode="reflect"), node("Conv", ["a", "w"], ["y"])],
            [*CONV, P_LONG],
        ),
        ["mode 'reflect'", "pad with zeros"],
    ),
    "pad value": (
        model(
            [node("Pad", ["x", "p", "v"], ["a"]), node("Conv", ["a", "w"], ["y"])],
            [*CONV, P_LONG, const("v", 1.0)],
        ),
        ["pads with 1.0"],
    ),
    "pad channels": (
        model(
            [node("Pad", ["x", "p"], ["a"]), node("Conv", ["a", "w"], ["y"])],
            [*CONV, const("p", [1, 0, 0, 0, 0, 0, 0, 0], np.int64)],
        ),
        ["channels or batch"],
    ),
    "pad max": (
        model(
            [
                node("Conv", ["x", "w"], ["a"]),
                node("Pad", ["a", "p"], ["q"]),
                node("MaxPool", ["q"], ["y"], kernel_shape=[2, 2]),
            ],
            [*CONV, P_LONG],
        ),
        ["max pool", "after a ReLU"],
    ),
    "pad relu": (
        model(
            [
                node("Conv", ["x", "w"], ["a"]),
                node("Pad", ["a", "p"], ["q"]),
                node("Relu", ["q"], ["y"]),
            ],
            [*CONV, P_LONG],
        ),
        ["padded tensor", "own padding"],
    ),
    "indices": (
        model(
            [
                node("Conv", ["x", "w"], ["a"]),
                node("MaxPool", ["a"], ["m", "i"], kernel_shape=[2, 2]),
                node("Cast", ["i"], ["y"], to=1),
            ],
            CONV,
        ),
        ["second result 'i'"],
    ),
    "transA": (model([node("Gemm", ["x", "w"], ["y"], transA=1)], VECTOR, (5, 5)), ["transA"]),
    "weight": (
        model([node("Conv", ["x", "x"], ["y"])], CONV),
        ["weight is computed from the input"],
    ),
    "weights first": (
        model([node("MatMul", ["w", "x"], ["y"])], [const("w", np.ones((4, 4)))], (4, 5)),
        ["second operand is computed"],
    ),
    "mean": (model(tail("a", "ReduceMean", axes=[1]), CONV, opset=13), ["reduces the axes (1,)"]),
    "mean all": (model(tail("a", "ReduceMean"), CONV, opset=13), ["reduces all axes"]),
    "flatten": (model(tail("a", "Flatten", axis=2), CONV), ["joins images"]),
    "squeeze": (
        model(
            [
                node("Conv", ["x", "w"], ["a"]),
                node("GlobalMaxPool", ["a"], ["g"]),
                node("Squeeze", ["g"], ["y"]),
            ],
            CONV,
        ),
        ["give its axes"],
    ),
    "softmax": (
        model(
            [node("Softmax", ["x"], ["s"], axis=1), node("Gemm", ["s", "w"], ["y"])],
            VECTOR,
            ("n", 5),
        ),
        ["only as the last node", "remove the Softmax"],
    ),
    "transpose": (
        model(
            [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Conv", ["t", "w"], ["y"])],
            CONV,
            ("n", 6, 7, 2),
        ),
        ["(Transpose)", "height, width)"],
    ),
    "training": (
        model(tail("a", "BatchNormalization", "b", "b", "b", "b", training_mode=1), CONV, opset=15),
        ["training mode", "evaluation mode"],
    ),
    "int8": (
        model(
            [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w"], ["y"])],
            [const("q", np.ones((3, 2, 3, 3)), np.int8), const("s", 0.1)],
        ),
        ["DequantizeLinear", "float network"],
    ),
    "custom": (
        model(
            [node("Conv", ["x", "w"], ["a"]), node("Magic", ["a"], ["y"], "m", domain="my.ops")],
            CONV,
        ),
        ["node 'm' (my.ops.Magic)", "replace it"],
    ),
    "integers": (model(tail("a", "Cast", to=TensorProto.INT32), CONV), ["converts to int32"]),
    "product": (model(tail("a", "Mul", "a"), CONV), ["two activations"]),
    "1d": (
        model([node("Conv", ["x", "w"], ["y"])], [const("w", np.ones((3, 2, 3)))]),
        ["two-dimensional"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    proto, texts = REFUSED[name]
    message = _refused(tmp_path, proto, UnsupportedLayer, *texts)
    assert message.startswith("1 problem keeps")


def test_all_problems_in_one_message(tmp_path: Path) -> None:
    """Operators behind a refused one are checked too, as far as shapes are known."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], "c1", dilations=[2, 2]),
        node("Elu", ["a"], ["e"], "e1"),
        node("Magic", ["e"], ["m"], "m1", domain="my.ops"),
        node("Tanh", ["m"], ["t"], "t1"),
        node("MaxPool", ["e"], ["p"], "p1", kernel_shape=[2, 2], dilations=[2, 2]),
        node("Gelu", ["p"], ["y"], "g1"),
    ]
    bad = np.ones(3, dtype=np.float32)
    bad[1] = np.nan
    message = _refused(
        tmp_path, model(nodes, [CONV[0], const("b", bad)], opset=20), UnsupportedLayer
    )
    assert message.startswith("7 problems keep")
    for name in ("'c1' (Conv)", "'e1' (Elu)", "'m1' (my.ops.Magic)", "'t1'", "'p1'", "'g1'"):
        assert f"node {name}" in message


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    bad = np.ones((3, 2, 3, 3), dtype=np.float32)
    bad[2, 1, 0, 0] = np.inf
    proto = model(tail("a", "Relu"), [const("w", bad), const("b", [1.0, np.nan, 1.0])])
    _refused(
        tmp_path, proto, BadNetwork, "tensor 'w'", "(2, 1, 0, 0): inf", "tensor 'b'", "(1,): nan"
    )


INFO = helper.make_tensor_value_info
INCONSISTENT: dict[str, tuple[onnx.ModelProto, str]] = {
    "no layers": (model([node("Relu", ["x"], ["y"])], []), "at least one convolution"),
    "channels": (
        model([node("Conv", ["x", "w", "b"], ["y"])], CONV, ("n", 3, 6, 7)),
        "takes 2 channels, not 3",
    ),
    "too small": (
        model([node("Conv", ["x", "w", "b"], ["y"])], CONV, ("n", 2, 2, 7)),
        "does not fit",
    ),
    "bias": (
        model([node("Conv", ["x", "w", "b"], ["y"])], [CONV[0], const("b", [1.0, 2.0])]),
        "must have shape (3,)",
    ),
    "kernel": (
        model([node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[5, 5])], CONV),
        "contradicts",
    ),
    "variance": (
        model(tail("a", "BatchNormalization", "b", "b", "b", "v"), [*CONV, const("v", [1, -1, 1])]),
        "variance + epsilon must be positive",
    ),
    "unknown tensor": (model([node("Conv", ["z", "w", "b"], ["y"])], CONV), "'z'"),
    "order": (
        model([node("Relu", ["a"], ["y"]), node("Conv", ["x", "w", "b"], ["a"])], CONV),
        "'a'",
    ),
    "free size": (model(tail("a", "Relu"), CONV, ("n", 2, "h", 7)), "fixed size, not (n, 2, h, 7)"),
    "rank": (model(tail("a", "Relu"), CONV, (2, 6, 7)), "must have the shape"),
    "no shape": (model(tail("a", "Relu"), CONV, None), "must have the shape"),  # type: ignore[arg-type]
    "no output": (model(tail("a", "Relu"), CONV, outputs=[]), "one output, not none"),
    "two inputs": (
        model(tail("a", "Relu"), CONV, inputs=[INFO("x", 1, [1, 2, 6, 7]), INFO("z", 1, [1])]),
        "one input, not 'x', 'z'",
    ),
    "bytes": (
        model(tail("a", "Relu"), CONV, inputs=[INFO("x", 2, [1, 2, 6, 7])]),
        "must be float32",
    ),
    "opset": (model(tail("a", "Relu"), CONV, opset=8), "opset must be 9"),
    "huge": (model(tail("a", "Relu"), CONV, (1, 2, 2**20, 2**20)), "more than"),
    "huge constant": (
        model(
            [node("Add", ["u", "v"], ["w"]), node("Gemm", ["x", "w"], ["y"])],
            [const("u", np.ones((2**15, 1))), const("v", np.ones((1, 2**15)))],
            (1, 5),
        ),
        "would have the shape",
    ),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent_files(name: str, tmp_path: Path) -> None:
    proto, text = INCONSISTENT[name]
    _refused(tmp_path, proto, BadNetwork, text)


def test_free_sizes_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, model(tail("a", "Relu"), CONV, ("n", 2, "h", 7)))
    assert import_onnx(path, input_shape=(2, 6, 7)).input_shape == (2, 6, 7)
    with pytest.raises(BadNetwork, match="not \\(3, 6, 7\\)"):
        import_onnx(path, input_shape=(3, 6, 7))


def test_files_that_are_not_onnx(tmp_path: Path) -> None:
    _refused(tmp_path, b"", BadNetwork, "holds no network")
    _refused(tmp_path, b"hello world, this is text", BadNetwork, "no ONNX file")
    _refused(tmp_path, b"PK\x03\x04rest", BadNetwork, "PyTorch file", "state_dict")
    with pytest.raises(BadInput, match="No such file"):
        import_onnx(tmp_path / "absent.onnx")
    with pytest.raises(BadInput, match="Is a directory"):
        import_onnx(tmp_path)


def test_damaged_files_never_show_a_traceback(tmp_path: Path) -> None:
    """Many cuts and changed bytes: a graph or one of our errors, nothing else."""
    data = model(
        [
            node("Conv", ["x", "w", "b"], ["a"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Shape", ["a"], ["shape"], "shape"),
            node("Slice", ["shape", "zero", "one"], ["n"], "slice"),
            node("Concat", ["n", "minus"], ["s"], "join", axis=0),
            node("Reshape", ["a", "s"], ["f"], "flat"),
            node("Clip", ["f", "low", "high"], ["y"], "clip"),
        ],
        [
            *CONV,
            *(const(n, [v], np.int64) for n, v in (("zero", 0), ("one", 1), ("minus", -1))),
            const("low", 0.0),
            const("high", 6.0),
        ],
    ).SerializeToString()
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in range(0, len(data), 7)]
    for _ in range(300):
        copy = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
            copy[place] = int(rng.integers(256))
        damaged.append(bytes(copy))
    refused = 0
    for item in damaged:
        try:
            import_onnx(write(tmp_path, item))
        except HwgenError:
            refused += 1
    assert refused > len(damaged) // 2


def _external(folder: Path, location: str) -> onnx.ModelProto:
    proto = model(
        [node("Gemm", ["x", "w"], ["y"])], [const("w", np.arange(20).reshape(5, 4))], (1, 5)
    )
    tensor = proto.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return proto


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    graph = import_onnx(write(folder, _external(folder, "w.bin")))
    assert np.array_equal(graph.mac_nodes[0].weight, np.arange(20).reshape(5, 4).T)
    (tmp_path / "w.bin").write_bytes(bytes(80))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    for location in ("../w.bin", str(tmp_path / "w.bin"), "link.bin", ""):
        _refused(
            folder,
            _external(folder, location),
            BadNetwork,
            "tensor 'w'",
            "not in the file's folder",
        )
    _refused(folder, _external(folder, "none.bin"), BadNetwork, "cannot be read from 'none.bin'")
    proto = _external(folder, "w.bin")
    (folder / "w.bin").write_bytes(bytes(10))
    _refused(folder, proto, BadNetwork, "w", "too small")


def test_functions_are_inlined(tmp_path: Path) -> None:
    body = helper.make_function(
        "my", "Act", ["i"], ["o"], [node("Relu", ["i"], ["o"])], [helper.make_opsetid("", 17)]
    )
    proto = model(
        [node("Conv", ["x", "w", "b"], ["a"]), node("Act", ["a"], ["y"], domain="my")], CONV
    )
    proto.ir_version = 8
    proto.opset_import.append(helper.make_opsetid("my", 1))
    proto.functions.append(body)
    assert [type(n).__name__ for n in import_onnx(write(tmp_path, proto)).nodes[1:]] == [
        "Conv",
        "Relu",
    ]
