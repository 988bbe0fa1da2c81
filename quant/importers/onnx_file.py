"""Opens an ONNX file: everything a bad file can hold is refused here, with one clear message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx.checker
import onnx.external_data_helper
import onnx.inliner
import onnx.numpy_helper

from hwgen.errors import BadInput, BadNetwork
from quant.graph import Shape
from quant.importers.build import Constant

__all__ = ["check_model", "constant_of", "input_of", "load_model", "opset_of"]

OPSETS = range(9, onnx.defs.onnx_opset_version() + 1)
MAX_BYTES = 2**31 - 1
"""Protocol buffers hold no more."""


def load_model(path: Path) -> onnx.ModelProto:
    """Read a file with its external data.

    Raises
    ------
    BadInput
        If there is no such file or it cannot be read.
    BadNetwork
        If it is no ONNX file, is truncated, is empty, or names data outside its folder.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give an ONNX file") from error
    if data[:2] == b"PK" or path.suffix in (".pt", ".pth"):
        raise BadNetwork(
            f"{path} is a PyTorch file, not ONNX; create the module, load its state_dict and import"
            " the module, or export it to ONNX"
        )
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # the parser's own error types differ between protobuf versions
        raise BadNetwork(
            f"{path} is no ONNX file, or is truncated or corrupt: {error}; export it again"
        ) from error
    if not model.ir_version or not model.graph.node:
        raise BadNetwork(
            f"{path} holds no network ({len(data)} bytes, {len(model.graph.node)} operations);"
            " export it again"
        )
    _check_names(model, path)
    if model.graph.sparse_initializer:
        raise BadNetwork(
            f"{path} holds sparse weights, which are not read; export it with dense ones"
        )
    _load_external(model, path)
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:  # malformed functions raise many types
            raise BadNetwork(f"{path}: its functions cannot be inlined: {error}") from error
    return model


def _check_names(model: onnx.ModelProto, path: Path) -> None:
    """The parser passes names that are no UTF-8 on as bytes."""
    graph = model.graph
    nodes = [*graph.node, *(n for f in model.functions for n in f.node)]
    names: list[object] = [v.name for v in (*graph.initializer, *graph.input, *graph.output)]
    names += [d.dim_param for v in graph.input for d in v.type.tensor_type.shape.dim]
    for node in nodes:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [a.name for a in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise BadNetwork(
                f"{path} is corrupt: it holds the name {name!r}, which is no text; export it again"
            )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise BadNetwork(
                f"{path}: the data of tensor '{tensor.name}' are at '{location}', which is not in"
                " the file's folder; move them there or save the model in one file"
            )
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # a missing, short or unreadable file, by onnx's own checks
            raise BadNetwork(
                f"{path}: the data of tensor '{tensor.name}' cannot be read from '{location}':"
                f" {error}; put the whole file beside the model"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def check_model(model: onnx.ModelProto, path: Path) -> None:
    """Check the file against the ONNX specification.

    Raises
    ------
    BadNetwork
        If it breaks a rule, such as an input that no earlier node makes.
    """
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    for output in checked.graph.output:
        # The checker wants a shape, which nothing here needs and many files leave out.
        output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(checked)
    except Exception as error:  # ValidationError, and others for values out of range
        reason = " ".join(str(error).split())[:400]
        raise BadNetwork(
            f"{path} breaks the ONNX specification: {reason}; export it again"
        ) from error


def opset_of(model: onnx.ModelProto, path: Path) -> int:
    """Version of the standard operators.

    Raises
    ------
    BadNetwork
        If the file names none, or one that is not read.
    """
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise BadNetwork(
            f"{path}: its opset must be {OPSETS.start} to {OPSETS.stop - 1}, not"
            f" {versions[0] if versions else 'missing'}; export it with opset 17"
        )
    return int(versions[0])


def constant_of(tensor: onnx.TensorProto, name: str) -> Constant:
    """A tensor of the file as a constant.

    Raises
    ------
    BadNetwork
        If its data do not fill its shape.
    """
    try:
        return Constant(name, onnx.numpy_helper.to_array(tensor))
    except Exception as error:  # wrong lengths, unknown types
        raise BadNetwork(
            f"the data of tensor '{name}' do not fit its shape {tuple(tensor.dims)}: {error};"
            " export the model again"
        ) from error


def input_of(
    model: onnx.ModelProto, path: Path, wanted: Shape | None
) -> tuple[str, Shape, int | None]:
    """Name, shape (without the batch) and batch size (None if free) of the one input.

    Raises
    ------
    BadNetwork
        If there are several inputs or outputs, or the shape is missing or not fixed.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in known]
    for kind, found in (("input", inputs), ("output", model.graph.output)):
        if len(found) != 1:
            names = ", ".join(f"'{v.name}'" for v in found) or "none"
            raise BadNetwork(f"{path}: the network must have one {kind}, not {names}; keep one")
    kind, name = inputs[0].type.tensor_type, inputs[0].name
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    if kind.elem_type not in floats:
        raise BadNetwork(f"{path}: the input '{name}' must be float32; export the float network")
    if not kind.HasField("shape") or len(kind.shape.dim) not in (2, 4):
        raise BadNetwork(
            f"{path}: the input '{name}' must have the shape (N, channels, height, width) or"
            f" (N, features), not {_shown(kind.shape)}; export it with that shape"
        )
    shape = tuple(int(d.dim_value) for d in kind.shape.dim[1:])
    if wanted is not None:
        fits = len(wanted) == len(shape)
        if not fits or any(n not in (0, w) for n, w in zip(shape, wanted, strict=False)):
            raise BadNetwork(f"{path}: the input '{name}' is {_shown(kind.shape)}, not {wanted}")
        shape = tuple(wanted)
    if min(shape) < 1:
        raise BadNetwork(
            f"{path}: the input '{name}' must have a fixed size, not {_shown(kind.shape)}; export"
            " it with only the batch free, or give input_shape"
        )
    return name, shape, int(kind.shape.dim[0].dim_value) or None


def _shown(shape: onnx.TensorShapeProto) -> str:
    dims: Sequence[str] = [
        d.dim_param or (str(d.dim_value) if d.dim_value else "?") for d in shape.dim
    ]
    return f"({', '.join(dims)})"
