"""Integer network to ONNX: the same integers from standard operators, for a check by another
runtime.

Tensors are INT64 codes under the layers' names. Convolutions run in FLOAT, which is exact while no
sum exceeds 2**24; where it could, weights and, if need be, inputs are split into digits whose
convolutions are exact, and the parts are put together in INT64. Requantisation is INT64 arithmetic
throughout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwgen.errors import UnsupportedLayer
from hwgen.files import write_bytes
from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Geometry,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    Rescale,
    Rounding,
    TensorType,
)

__all__ = ["export_onnx", "to_onnx"]

OPSET, IR_VERSION = 17, 9

FLOAT_LIMIT, DOUBLE_LIMIT = 1 << 24, 1 << 53
"""All integers up to these are exact in FLOAT and DOUBLE."""


def _digits(codes: NDArray[np.int64], bits: int) -> list[tuple[NDArray[np.int64], int]]:
    """``codes`` as ``sum digit << shift``, each digit at most ``2**bits`` in magnitude."""
    made, shift = [], 0
    while np.abs(codes).max() > 1 << bits:
        made.append((codes & ((1 << bits) - 1), shift))
        codes, shift = codes >> bits, shift + bits
    return [*made, (codes, shift)]


class _Graph:
    """Collects nodes and constants."""

    def __init__(self, names: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._used = set(names)

    def fresh(self, hint: str) -> str:
        """A name that no other value has."""
        name, count = hint, 1
        while name in self._used:
            count += 1
            name = f"{hint}_{count}"
        self._used.add(name)
        return name

    def constant(self, hint: str, values: Any, dtype: Any = np.int64) -> str:
        name = self.fresh(hint)
        self.constants.append(numpy_helper.from_array(np.array(values, dtype=dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], hint: str, **attributes: Any) -> str:
        """Append a node; its only output's name."""
        output = self.fresh(hint)
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def rename(self, value: str, name: str) -> None:
        """Give a value the name of a layer."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def binary(self, kind: str, left: str, right: Any, hint: str) -> str:
        """A node of a value and an INT64 constant."""
        return self.node(kind, [left, self.constant(f"{hint}/operand", right)], hint)

    def cast(self, value: str, to: int, hint: str) -> str:
        return self.node("Cast", [value], hint, to=to)

    def centred(self, value: str, kind: TensorType, hint: str) -> str:
        """``code - zero``."""
        return self.binary("Sub", value, kind.zero, f"{hint}/centred") if kind.zero else value

    def requant(self, value: str, requant: Requant, ndim: int, hint: str) -> str:
        """Requantised codes of accumulators with ``ndim`` axes, the batch included."""

        def column(values: Any) -> NDArray[np.int64]:
            array = np.array(values, dtype=np.int64)
            return array.reshape(-1, *[1] * (ndim - 2)) if array.size > 1 else array.reshape(())

        if requant.relu:
            value = self.binary("Max", value, 0, f"{hint}/relu")
        value = self.binary("Mul", value, column(requant.mult), f"{hint}/scaled")
        value = self.binary("Add", value, column(requant.add), f"{hint}/offset")
        power = column([1 << s for s in requant.shift])
        value = self.rounded(value, power, requant.rounding, hint)
        value = self.binary("Add", value, requant.zero, f"{hint}/rounded")
        value = self.binary("Max", value, column(requant.low), f"{hint}/low")
        return self.binary("Min", value, column(requant.high), f"{hint}/high")

    def floored(self, value: str, power: NDArray[np.int64], hint: str) -> str:
        """``floor(value / power)``; Div truncates, but the difference is a multiple of
        ``power``."""
        rest = self.binary("Mod", value, power, f"{hint}/rest")
        whole = self.node("Sub", [value, rest], f"{hint}/whole")
        return self.binary("Div", whole, power, f"{hint}/floor")

    def rounded(self, value: str, power: NDArray[np.int64], rounding: Rounding, hint: str) -> str:
        """``round(value / power)``."""
        if rounding is Rounding.FLOOR:
            return self.floored(value, power, hint)
        up = self.binary("Add", value, power // 2, f"{hint}/half")
        if rounding is Rounding.HALF_UP:
            return self.floored(up, power, hint)
        if rounding is Rounding.HALF_AWAY:
            half = self.constant(f"{hint}/operand", power // 2)
            down = self.node("Sub", [half, value], f"{hint}/half")
            below = self.node("Neg", [self.floored(down, power, hint)], f"{hint}/below")
            negative = self.binary("Less", value, 0, f"{hint}/negative")
            above = self.floored(up, power, hint)
            return self.node("Where", [negative, below, above], f"{hint}/away")
        # Up where twice the rest exceeds the power, or equals it and the floor is odd.
        floor = self.floored(value, power, hint)
        rest = self.binary("Mod", value, power, f"{hint}/rest")
        twice = self.binary("Mul", rest, 2, f"{hint}/twice")
        more = self.binary("Greater", twice, power, f"{hint}/more")
        equal = self.binary("Equal", twice, power, f"{hint}/equal")
        parity = self.binary("Mod", floor, 2, f"{hint}/parity")
        odd = self.cast(parity, TensorProto.BOOL, f"{hint}/odd")
        tie = self.node("And", [equal, odd], f"{hint}/tie")
        carry = self.node("Or", [more, tie], f"{hint}/carry")
        return self.node(
            "Add", [floor, self.cast(carry, TensorProto.INT64, f"{hint}/carry")], f"{hint}/even"
        )

    def digits(
        self, value: str, low: int, high: int, bits: int, hint: str
    ) -> list[tuple[str, int]]:
        """Like :func:`_digits`, of a value in ``low..high``: nodes that compute the digits."""
        made, shift = [], 0
        base = np.int64(1 << bits)
        while low < -base or high > base:
            made.append((self.binary("Mod", value, base, f"{hint}/digit"), shift))
            value = self.floored(value, np.array(base), f"{hint}/digit")
            low, high, shift = low >> bits, high >> bits, shift + bits
        return [*made, (value, shift)]

    def convolve(
        self,
        value: str,
        codes: NDArray[np.int64],
        kind: TensorType,
        geometry: Geometry,
        *,
        groups: int,
        hint: str,
    ) -> str:
        """INT64 sums of products of centred codes of a type with constants ``(out, in, rows,
        columns)``."""
        low, high = kind.minimum - kind.zero, kind.maximum - kind.zero
        reach = max(abs(low), abs(high))
        inputs, parts = [(value, 0)], [(codes, 0)]
        if int((np.abs(codes).sum(axis=(1, 2, 3)) * reach).max()) > FLOAT_LIMIT:
            # A sum of products of digits is at most taps * 2**(bits of both digits) <= 2**24.
            taps = int(np.prod(codes.shape[1:]))
            room = 24 - (taps - 1).bit_length()
            if room < 2:
                raise UnsupportedLayer(
                    f"layer '{hint}' sums {taps} products, more than {1 << 22}, which FLOAT cannot"
                    " add"
                    f" exactly; it cannot be exported"
                )
            input_bits = min(reach.bit_length(), room - 1 if reach < 1 << (room - 1) else room // 2)
            inputs = self.digits(value, low, high, input_bits, hint)
            parts = _digits(codes, room - input_bits)
        total = None
        for digit, shift in inputs:
            floats = self.cast(digit, TensorProto.FLOAT, f"{hint}/float")
            for part, more in parts:
                constant = self.constant(f"{hint}/weights", part, np.float32)
                product = self.node(
                    "Conv",
                    [floats, constant],
                    f"{hint}/products",
                    kernel_shape=list(geometry.kernel),
                    strides=list(geometry.stride),
                    pads=list(geometry.overhang),
                    group=groups,
                )
                product = self.cast(product, TensorProto.INT64, f"{hint}/integers")
                if shift + more:
                    product = self.binary("Mul", product, 1 << (shift + more), f"{hint}/part")
                if total is not None:
                    product = self.node("Add", [total, product], f"{hint}/sum")
                total = product
        assert total is not None
        return total

    def layer(self, op: Op, inputs: list[str]) -> str:
        """Nodes of a layer; the name of its codes."""
        hint, ndim = op.name, 1 + len(op.output.shape)
        match op:
            case Conv() | Linear():
                acc = self.mac(op, inputs[0])
                return acc if op.requant is None else self.requant(acc, op.requant, ndim, hint)
            case MaxPool():
                return self.max_pool(op, inputs[0])
            case AvgPool():
                ones = np.ones((op.input.channels, 1, *op.geometry.kernel), dtype=np.int64)
                value = self.centred(inputs[0], op.input, hint)
                groups = op.input.channels
                acc = self.convolve(value, ones, op.input, op.geometry, groups=groups, hint=hint)
                acc = self.binary("Mul", acc, op.multipliers, f"{hint}/sums")
                return self.requant(acc, op.requant, ndim, hint)
            case GlobalAvgPool():
                value = self.centred(inputs[0], op.input, hint)
                axes = self.constant(f"{hint}/axes", [2, 3])
                acc = self.node("ReduceSum", [value, axes], f"{hint}/sums", keepdims=0)
                return self.requant(acc, op.requant, ndim, hint)
            case GlobalMaxPool():
                return self.node("ReduceMax", inputs, f"{hint}/largest", axes=[2, 3], keepdims=0)
            case Flatten():
                return self.node("Flatten", inputs, f"{hint}/flat", axis=1)
            case Add():
                terms = [
                    self.binary("Mul", self.centred(value, kind, hint), mult, f"{hint}/term")
                    for value, kind, mult in zip(inputs, op.types, op.mult, strict=True)
                ]
                acc = self.node("Add", terms, f"{hint}/sums")
                return self.requant(acc, op.requant, ndim, hint)
            case Concat():
                return self.node("Concat", inputs, f"{hint}/joined", axis=1)
            case Rescale():
                value = self.centred(inputs[0], op.input, hint)
                return self.requant(value, op.requant, ndim, hint)
        raise UnsupportedLayer(f"layer '{op.name}' ({type(op).__name__}) has no ONNX form")

    def mac(self, op: Conv | Linear, value: str) -> str:
        """Accumulators of a multiply-accumulate layer."""
        hint, codes = op.name, op.weights.codes
        value = self.centred(value, op.input, hint)
        if isinstance(op, Conv):
            acc = self.convolve(value, codes, op.input, op.geometry, groups=op.groups, hint=hint)
        else:
            # A matrix product exists in DOUBLE and INT64 too, so that nothing needs splitting.
            exact = op.magnitude <= DOUBLE_LIMIT
            if exact:
                value = self.cast(value, TensorProto.DOUBLE, f"{hint}/double")
            kind = np.float64 if exact else np.int64
            weights = self.constant(f"{hint}/weights", codes.T, kind)
            acc = self.node("MatMul", [value, weights], f"{hint}/products")
            if exact:
                acc = self.cast(acc, TensorProto.INT64, f"{hint}/integers")
        if op.bias is None:
            return acc
        column = op.bias.values.reshape(-1, *[1] * (len(op.output.shape) - 1))
        return self.binary("Add", acc, column, f"{hint}/acc")

    def max_pool(self, op: MaxPool, value: str) -> str:
        """A pool of floats, padded beforehand by what its windows really reach outside.

        Runtimes differ in what ``ceil_mode`` does with a window that begins in the padding.
        """
        hint, g = op.name, op.geometry
        largest = max(abs(op.input.minimum), abs(op.input.maximum))
        if largest > DOUBLE_LIMIT:
            raise UnsupportedLayer(
                f"layer '{hint}' pools codes of {op.input.width} bits, more than DOUBLE holds"
                " exactly;"
                f" requantise them to at most 53 bits first"
            )
        exact = largest <= FLOAT_LIMIT
        to, kind = (TensorProto.FLOAT, np.float32) if exact else (TensorProto.DOUBLE, np.float64)
        value = self.cast(value, to, f"{hint}/float")
        if any(g.overhang):
            top, left, bottom, right = g.overhang
            pads = self.constant(f"{hint}/pads", [0, 0, top, left, 0, 0, bottom, right])
            lowest = self.constant(f"{hint}/lowest", op.input.minimum, kind)
            value = self.node("Pad", [value, pads, lowest], f"{hint}/padded")
        value = self.node(
            "MaxPool",
            [value],
            f"{hint}/largest",
            kernel_shape=list(g.kernel),
            strides=list(g.stride),
        )
        return self.cast(value, TensorProto.INT64, f"{hint}/integers")


def to_onnx(network: Network, *, every_tensor: bool = False) -> onnx.ModelProto:
    """A network as an ONNX model (opset 17) of standard operators with the same integers.

    Parameters
    ----------
    network : Network
    every_tensor : bool
        Whether the codes of every layer are outputs, not only the network's.

    Returns
    -------
    onnx.ModelProto
        Input ``input`` and outputs, named after the layers, are INT64 codes ``(N, *shape)``.

    Raises
    ------
    UnsupportedLayer
        If a layer's numbers are beyond what FLOAT and DOUBLE can be made to hold exactly.
    """
    graph = _Graph({INPUT, *(op.name for op in network.ops)})
    for op in network.ops:
        graph.rename(graph.layer(op, list(op.inputs)), op.name)

    def info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["N", *kind.shape])

    shown = [op for op in network.ops if every_tensor or op.name == network.output]
    proto = helper.make_graph(
        graph.nodes,
        network.name,
        [info(INPUT, network.input)],
        [info(op.name, op.output) for op in shown],
        graph.constants,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="hwgen",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def export_onnx(network: Network, path: Path, *, every_tensor: bool = False) -> None:
    """Write :func:`to_onnx` to a file.

    Raises
    ------
    BadInput
        If the file cannot be written.
    UnsupportedLayer
        See :func:`to_onnx`.
    """
    model = to_onnx(network, every_tensor=every_tensor)
    write_bytes(Path(path), model.SerializeToString(deterministic=True))
