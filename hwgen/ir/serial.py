"""Networks as files: ``network.json`` says everything but the constants, ``weights.npz`` holds
those.

Both ways are strict: every key must be there and known, every value of its type, every array of the
data type and shape that its layer says. The JSON holds the digest of the weights file, so that
halves of two different networks are noticed. Equal networks give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork
from hwgen.files import ensure_folder, write_atomic, write_bytes
from hwgen.ir.formats import TensorType
from hwgen.ir.geometry import Geometry
from hwgen.ir.network import Network
from hwgen.ir.ops import (
    Add,
    AvgPool,
    Bias,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Op,
    Rescale,
    Weights,
)
from hwgen.ir.requant import Requant, Rounding

__all__ = ["NETWORK_FILE", "SCHEMA", "WEIGHTS_FILE", "load_network", "save_network"]

SCHEMA = 2
"""Version of the files' layout."""

NETWORK_FILE, WEIGHTS_FILE = "network.json", "weights.npz"

Arrays = dict[str, NDArray[Any]]
"""Constants by the layer's name and ``.weights`` or ``.bias``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codec:
    """How a value becomes JSON and back.

    ``encode(value, key, arrays)`` and ``decode(json, where, key, arrays)``: ``where`` is for
    messages, ``key`` the name under which an array is kept.
    """

    encode: Callable[[Any, str, Arrays], Any]
    decode: Callable[[Any, str, str, Arrays], Any]


def _bad(where: str, must: str, value: Any) -> BadNetwork:
    text = json.dumps(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return BadNetwork(f"{where} must be {must}, not {shown}")


def _plain(kind: type, must: str) -> _Codec:
    """A bool, an int or a string; a bool is no int here."""

    def decode(value: Any, where: str, key: str, arrays: Arrays) -> Any:
        if type(value) is not kind:
            raise _bad(where, must, value)
        return value

    return _Codec(encode=lambda value, key, arrays: kind(value), decode=decode)


def _decode_float(value: Any, where: str, key: str, arrays: Arrays) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise _bad(where, "a finite number", value)
    return float(value)


def _decode_rounding(value: Any, where: str, key: str, arrays: Arrays) -> Rounding:
    if value not in {rounding.value for rounding in Rounding}:
        raise _bad(where, f"one of {', '.join(r.value for r in Rounding)}", value)
    return Rounding(value)


def _optional(inner: _Codec) -> _Codec:
    """The value or null."""

    def encode(value: Any, key: str, arrays: Arrays) -> Any:
        return None if value is None else inner.encode(value, key, arrays)

    def decode(value: Any, where: str, key: str, arrays: Arrays) -> Any:
        return None if value is None else inner.decode(value, where, key, arrays)

    return _Codec(encode=encode, decode=decode)


def _tuple(inner: _Codec, count: int | None = None) -> _Codec:
    """A list of any length, or of ``count`` entries."""

    def encode(value: Any, key: str, arrays: Arrays) -> Any:
        return [inner.encode(entry, key, arrays) for entry in value]

    def decode(value: Any, where: str, key: str, arrays: Arrays) -> Any:
        if type(value) is not list or (count is not None and len(value) != count):
            raise _bad(where, "a list" if count is None else f"a list of {count}", value)
        return tuple(inner.decode(v, f"{where}[{i}]", key, arrays) for i, v in enumerate(value))

    return _Codec(encode=encode, decode=decode)


def _keys(value: Any, where: str, expected: list[str]) -> dict[str, Any]:
    """An object with exactly the expected keys."""
    if type(value) is not dict:
        raise _bad(where, "an object", value)
    for name in expected:
        if name not in value:
            raise BadNetwork(f"{where} lacks the key '{name}'; add it")
    for name in value:
        if name not in expected:
            raise BadNetwork(f"{where} has the unknown key '{name}'; remove it")
    return value


def _record(kind: type, members: dict[str, _Codec]) -> _Codec:
    """A dataclass as an object with one key a field, in the order given."""

    def encode(value: Any, key: str, arrays: Arrays) -> Any:
        return {
            name: codec.encode(getattr(value, name), f"{key}.{name}", arrays)
            for name, codec in members.items()
        }

    def decode(value: Any, where: str, key: str, arrays: Arrays) -> Any:
        given = _keys(value, where, list(members))
        made = {
            name: codec.decode(given[name], f"{where}.{name}", f"{key}.{name}", arrays)
            for name, codec in members.items()
        }
        try:
            return kind(**made)
        except BadNetwork as error:
            raise BadNetwork(f"{where}: {error}") from error

    return _Codec(encode=encode, decode=decode)


def _storage(width: int, *, signed: bool) -> np.dtype[Any]:
    """The data type in the weights file of codes of a width: the smallest that holds them."""
    for size in (8, 16, 32, 64):
        if width <= size:
            return np.dtype(f"<{'i' if signed else 'u'}{size // 8}").newbyteorder("<")
    raise BadNetwork(f"a width must be at most 64 bits, not {width}")


def _codes(kind: type[Weights] | type[Bias], dimensions: tuple[int, ...]) -> _Codec:
    """Constants: the format in the JSON with the shape, the codes as an array of the other file."""
    members = {
        field.name: CONSTANT_FIELDS[field.name] for field in fields(kind) if field.name != "codes"
    }
    shapes = " or ".join(map(str, dimensions))

    def encode(value: Any, key: str, arrays: Arrays) -> Any:
        signed = value.signed if isinstance(value, Weights) else True
        arrays[key] = value.codes.astype(_storage(value.width, signed=signed))
        plain = {name: c.encode(getattr(value, name), key, arrays) for name, c in members.items()}
        return {"shape": list(value.codes.shape), **plain}

    def decode(value: Any, where: str, key: str, arrays: Arrays) -> Any:
        given = _keys(value, where, ["shape", *members])
        made = {
            name: codec.decode(given[name], f"{where}.{name}", key, arrays)
            for name, codec in members.items()
        }
        shape = _tuple(INT).decode(given["shape"], f"{where}.shape", key, arrays)
        if len(shape) not in dimensions:
            raise _bad(f"{where}.shape", f"a list of {shapes}", list(shape))
        if key not in arrays:
            raise BadNetwork(f"{WEIGHTS_FILE} lacks the array '{key}' that {where} needs; add it")
        array = arrays.pop(key)
        stored = _storage(made["width"], signed=made.get("signed", True))
        if array.dtype != stored or array.shape != shape:
            raise BadNetwork(
                f"the array '{key}' of {WEIGHTS_FILE} must be {stored} {shape} as {where} says, not"
                f" {array.dtype} {array.shape}; change either"
            )
        try:
            return kind(codes=array, **made)
        except BadNetwork as error:
            raise BadNetwork(f"{where}: {error}") from error

    return _Codec(encode=encode, decode=decode)


INT, BOOL, TEXT = _plain(int, "an integer"), _plain(bool, "true or false"), _plain(str, "a string")
FLOAT = _Codec(encode=lambda value, key, arrays: float(value), decode=_decode_float)
ROUNDING = _Codec(encode=lambda value, key, arrays: value.value, decode=_decode_rounding)

TYPE = _record(
    TensorType,
    {
        "shape": _tuple(INT),
        "width": INT,
        "signed": BOOL,
        "scale": FLOAT,
        "zero": INT,
        "low": INT,
        "high": INT,
    },
)
GEOMETRY = _record(
    Geometry,
    {
        "height": INT,
        "width": INT,
        "kernel": _tuple(INT, 2),
        "stride": _tuple(INT, 2),
        "padding": _tuple(INT, 4),
        "ceil_mode": BOOL,
    },
)
REQUANT = _record(
    Requant,
    {
        "mult": _tuple(INT),
        "add": _tuple(INT),
        "shift": _tuple(INT),
        "low": _tuple(INT),
        "high": _tuple(INT),
        "zero": INT,
        "rounding": ROUNDING,
        "relu": BOOL,
    },
)
CONSTANT_FIELDS = {
    "width": INT,
    "signed": BOOL,
    "scale": _tuple(FLOAT),
    "codebook": _optional(_tuple(INT)),
    "shift": INT,
}
WEIGHTS, BIAS = _codes(Weights, (2, 4)), _optional(_codes(Bias, (1,)))

LAYERS: dict[type[Op], dict[str, _Codec]] = {
    Conv: {
        "input": TYPE,
        "weights": WEIGHTS,
        "bias": BIAS,
        "geometry": GEOMETRY,
        "groups": INT,
        "requant": _optional(REQUANT),
    },
    Linear: {"input": TYPE, "weights": WEIGHTS, "bias": BIAS, "requant": _optional(REQUANT)},
    MaxPool: {"input": TYPE, "geometry": GEOMETRY},
    AvgPool: {
        "input": TYPE,
        "geometry": GEOMETRY,
        "count_include_pad": BOOL,
        "requant": REQUANT,
    },
    GlobalAvgPool: {"input": TYPE, "requant": REQUANT},
    GlobalMaxPool: {"input": TYPE},
    Flatten: {"input": TYPE},
    Add: {"types": _tuple(TYPE, 2), "mult": _tuple(INT, 2), "requant": REQUANT},
    Concat: {"types": _tuple(TYPE)},
    Rescale: {"input": TYPE, "requant": REQUANT},
}
"""Fields of each layer beside ``name``, ``inputs`` and ``output``."""


def _layer_record(kind: type[Op]) -> _Codec:
    return _record(kind, {"name": TEXT, "inputs": _tuple(TEXT), **LAYERS[kind], "output": TYPE})


def _encode_layer(op: Op, arrays: Arrays) -> dict[str, Any]:
    encoded = _layer_record(type(op)).encode(op, op.name, arrays)
    return {"op": type(op).__name__, **encoded}


def _decode_layer(value: Any, where: str, arrays: Arrays) -> Op:
    if type(value) is not dict or type(value.get("op")) is not str:
        raise _bad(where, "an object with the key 'op'", value)
    kinds = {kind.__name__: kind for kind in LAYERS}
    if value["op"] not in kinds:
        raise _bad(f"{where}.op", f"one of {', '.join(kinds)}", value["op"])
    name = value.get("name")
    place = f"{where} ('{name}')" if type(name) is str else where
    rest = {key: entry for key, entry in value.items() if key != "op"}
    op = _layer_record(kinds[value["op"]]).decode(rest, place, str(name), arrays)
    assert isinstance(op, Op)
    return op


def _pack(arrays: Arrays) -> bytes:
    """An ``.npz`` of equal bytes for equal arrays: in order, not compressed, without dates."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(
                entry, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, entry.getvalue())
    return file.getvalue()


def _unpack(data: bytes, path: Path) -> Arrays:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BadNetwork(
            f"{path} is no readable .npz file ({error}); save the network again"
        ) from error


def save_network(network: Network, folder: Path) -> None:
    """Write ``network.json`` and ``weights.npz`` into a folder, which is created where needed.

    Raises
    ------
    BadInput
        If the files cannot be written. What was there before then stays.
    """
    arrays: Arrays = {}
    layers = [_encode_layer(op, arrays) for op in network.ops]
    weights = _pack(arrays)
    text = json.dumps(
        {
            "schema": SCHEMA,
            "name": network.name,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "input": TYPE.encode(network.input, "input", arrays),
            "layers": layers,
            "output": network.output,
        },
        indent=2,
        allow_nan=False,
    )
    # Lists of numbers on one line. Strings hold no raw line break, so none is touched.
    text = re.sub(r"\[\n([-+.e\d,\s]+)\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    folder = ensure_folder(Path(folder))

    def both(file: Any) -> None:
        """The JSON is complete beside its place before the weights take theirs; then it takes its
        own."""
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        write_bytes(folder / WEIGHTS_FILE, weights)

    write_atomic(folder / NETWORK_FILE, both)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadNetwork(
            f"cannot read {path}: {error.strerror}; give a folder that a network was saved to"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadNetwork(f"the key '{twice}' is there twice; remove one")
    return made


def _parse(path: Path) -> Any:
    def refuse(text: str) -> Any:
        raise BadNetwork(f"every number must be finite, not {text}")

    try:
        return json.loads(_read(path).decode(), object_pairs_hook=_unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadNetwork(f"no valid JSON ({error}); save the network again") from error


def load_network(folder: Path) -> Network:
    """Read a network that :func:`save_network` wrote.

    Raises
    ------
    BadNetwork
        If a file is missing, damaged, of another schema, or inconsistent; the message says where.
    """
    folder = Path(folder)
    path = folder / NETWORK_FILE
    try:
        value = _parse(path)
        if type(value) is not dict or type(value.get("schema")) is not int:
            raise BadNetwork("the file must be an object with an integer key 'schema'")
        if value["schema"] != SCHEMA:
            raise BadNetwork(
                f"the schema must be {SCHEMA}, not {value['schema']}; save the network again with"
                " this"
                f" version"
            )
        names = ["schema", "name", "weights_sha256", "input", "layers", "output"]
        given = _keys(value, "the file", names)
        data = _read(folder / WEIGHTS_FILE)
        if hashlib.sha256(data).hexdigest() != given["weights_sha256"]:
            raise BadNetwork(
                f"{WEIGHTS_FILE} is not the file that was saved with it (its SHA-256 differs): one"
                " of"
                f" the two is damaged or from another network; save the network again"
            )
        arrays = _unpack(data, folder / WEIGHTS_FILE)
        source = TYPE.decode(given["input"], "input", "input", arrays)
        if type(given["layers"]) is not list:
            raise _bad("layers", "a list", given["layers"])
        ops = tuple(
            _decode_layer(layer, f"layers[{i}]", arrays) for i, layer in enumerate(given["layers"])
        )
        if arrays:
            raise BadNetwork(
                f"{WEIGHTS_FILE} has arrays that no layer needs: {sorted(arrays)}; remove them"
            )
        return Network(
            name=TEXT.decode(given["name"], "name", "", arrays),
            input=source,
            ops=ops,
            output=TEXT.decode(given["output"], "output", "", arrays),
        )
    except BadNetwork as error:
        raise BadNetwork(f"{path}: {error}") from error
    except (MemoryError, OverflowError) as error:
        raise BadNetwork(
            f"{path}: a size or number is too large ({error}); save the network again"
        ) from error
