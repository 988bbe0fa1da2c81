"""The MAC stage: a stored vector times a matrix of constant weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Const, Module, Mux, Shape, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from hwgen.ir.requant import Requant
from hwgen.ir.timing import MEMORY_READ, MULTIPLY, accumulate_latency, tree_latency
from rtl.adder_tree import node_shape, registered_tree, sum_intervals
from rtl.buffer import OutputBuffer
from rtl.memory import Rom
from rtl.requant import Requantizer, shape_interval
from rtl.rescale import delayed
from rtl.vector import VectorBuffer
from rtl.weights import StoredWeights, WeightMemory

__all__ = ["MacArray", "MacStage"]

SHALLOW = 16
"""Folds up to which the biases are lookup tables in front of a register and no block memory."""


class MacArray(wiring.Component):
    """Multipliers, adder trees and accumulators: a pipeline that takes a word every cycle.

    Registers, in order: operands ``x_<in>`` and ``w_<out>_<in>``, products ``product_<out>_<in>``,
    ``tree_latency(in_lanes)`` levels of sums ``sum_<out>_<level>_<node>``, accumulators
    ``acc_<out>``. Each has the width of its own exact interval over the weights that occur in its
    place, and at most the accumulator's, where two's complement makes wrapping harmless. An operand
    ``w_<out>_<in>`` that is the same in every word is a constant and no register.

    Parameters
    ----------
    stored : StoredWeights
        What ``w`` and ``free`` carry.
    bias : int64 array
        ``(folds, out_lanes)``, what the accumulators start from.
    shape_in : Shape
        One code.
    acc_width : int
        Bits of the signed accumulators.

    Members
    -------
    x : ``In(ArrayLayout(shape_in, in_lanes))``
    w : ``In(ArrayLayout(stored.shape, out_lanes * in_lanes))``
    free : ``In(len(stored.free))``
        Whether to take 0 for ``x`` in those lanes; absent where there are none.
    valid, last : ``In(1)``
        Belong to ``x``: whether there is a word, and whether it is the last of its fold.
    acc : ``Out(ArrayLayout(signed(acc_width), out_lanes))``
        Accumulators.
    done : ``Out(1)``
        The accumulators hold a whole fold.
    fold : ``Out(range(folds))``
        Which one, while ``done``.
    """

    def __init__(
        self,
        stored: StoredWeights,
        bias: NDArray[np.int64],
        shape_in: Shape,
        acc_width: int,
    ) -> None:
        self.stored = stored
        self.weights = stored.weights
        self.folds, self.words, self.out_lanes, self.in_lanes = stored.weights.shape
        self.bias = bias
        self.shape_in = shape_in
        self.acc_width = acc_width
        members = {
            "x": In(data.ArrayLayout(shape_in, self.in_lanes)),
            "w": In(data.ArrayLayout(stored.shape, self.out_lanes * self.in_lanes)),
            "valid": In(1),
            "last": In(1),
            "acc": Out(data.ArrayLayout(signed(acc_width), self.out_lanes)),
            "done": Out(1),
            "fold": Out(range(self.folds)),
        }
        if stored.free:
            members["free"] = In(len(stored.free))
        super().__init__(members)

    @property
    def latency(self) -> int:
        """Cycles from a fold's last word to its accumulators."""
        return 1 + MULTIPLY + tree_latency(self.in_lanes) + accumulate_latency()

    def node_shapes(self) -> list[list[list[Shape]]]:
        """Shapes of products and sums: ``[out][level][node]``, level 0 the products."""
        low, high = shape_interval(self.shape_in)
        ends = self.weights * low, self.weights * high
        levels = sum_intervals(np.minimum(*ends), np.maximum(*ends))
        return [
            [
                [
                    node_shape(int(lo), int(hi), self.acc_width)
                    for lo, hi in zip(
                        lows[:, :, out].min(axis=(0, 1)),
                        highs[:, :, out].max(axis=(0, 1)),
                        strict=True,
                    )
                ]
                for lows, highs in levels
            ]
            for out in range(self.out_lanes)
        ]

    def elaborate(self, platform: object) -> Any:
        m = Module()
        operands = []
        for k in range(self.in_lanes):
            x = Signal(self.shape_in, name=f"x_{k}", reset_less=True)
            code = self.x[k]
            if k in self.stored.free:
                code = Mux(self.free[self.stored.free.index(k)], 0, code)
            m.d.sync += x.eq(code)
            operands.append(x)
        sums = [
            self._lane_sum(m, out, operands, shapes)
            for out, shapes in enumerate(self.node_shapes())
        ]
        # A word reaches the accumulators' adders this many cycles after the inputs.
        reach = self.latency - accumulate_latency()
        arrives = delayed(m, self.valid, reach, "arrives")
        ends = delayed(m, self.valid & self.last, reach, "ends")
        begins = Signal(init=1)
        with m.If(arrives):
            m.d.sync += begins.eq(ends)
        m.d.sync += self.done.eq(ends)
        # A block memory is slow: behind one stands another register, its fold counted earlier.
        ahead = 1 + int(self.folds > SHALLOW)
        early = delayed(m, self.valid & self.last, reach - ahead, "ends_early")
        for out, (total, bias) in enumerate(zip(sums, self._bias(m, early, ahead), strict=True)):
            acc = Signal(signed(self.acc_width), name=f"acc_{out}", reset_less=True)
            start = bias if self.words == 1 else Mux(begins, bias, acc)
            with m.If(arrives):
                m.d.sync += acc.eq(start + total)
            m.d.comb += self.acc[out].eq(acc)
        return m

    def _lane_sum(self, m: Module, out: int, operands: list[Signal], shapes: Any) -> Any:
        products = []
        for k, (x, shape) in enumerate(zip(operands, shapes[0], strict=True)):
            codes = self.stored.operands[:, :, out, k]
            w = Signal(self.stored.shape, name=f"w_{out}_{k}", reset_less=True)
            if (codes == codes[0, 0]).all():
                m.d.comb += w.eq(int(codes[0, 0]))
            else:
                m.d.sync += w.eq(self.w[out * self.in_lanes + k])
            product = Signal(shape, name=f"product_{out}_{k}", reset_less=True)
            m.d.sync += product.eq(x * w)
            products.append(product)
        return registered_tree(m, products, shapes[1:], lambda a, b: a + b, f"sum_{out}")

    def _bias(self, m: Module, ends_early: Any, ahead: int) -> list[Any]:
        """Bias of each lane for the fold that arrives; counts folds ``ahead`` cycles before."""
        mask, width = (1 << self.acc_width) - 1, self.acc_width
        if self.folds == 1:
            return [self._bias_constant(int(code)) for code in self.bias[0]]
        fold = Signal(range(self.folds), name="fold_next")
        with m.If(ends_early):
            m.d.sync += fold.eq(Mux(fold == self.folds - 1, 0, fold + 1))
        arriving: Any = fold
        for k in range(ahead):
            later = Signal(range(self.folds), name=f"fold_{k + 1}", reset_less=True)
            m.d.sync += later.eq(arriving)
            arriving = later
        m.d.sync += self.fold.eq(arriving)
        varying = [out for out in range(self.out_lanes) if len(set(self.bias[:, out].tolist())) > 1]
        biases: list[Any] = [self._bias_constant(int(code)) for code in self.bias[0]]
        if varying:
            words = [
                sum((int(row[out]) & mask) << (k * width) for k, out in enumerate(varying))
                for row in self.bias
            ]
            m.submodules.bias = rom = Rom(words, width * len(varying))
            m.d.comb += rom.addr.eq(fold)
            word: Any = rom.data
            for k in range(1, ahead):
                later = Signal(len(word), name=f"bias_{k}", reset_less=True)
                m.d.sync += later.eq(word)
                word = later
            for k, out in enumerate(varying):
                biases[out] = word[k * width : (k + 1) * width].as_signed()
        return biases

    def _bias_constant(self, code: int) -> Any:
        return Const(code, signed(self.acc_width))


class MacStage(wiring.Component):
    """Matrix times vector, ``in_lanes * out_lanes`` products a cycle.

    The actors are those of the design page: *write* stores the words of a vector in a ring, *issue*
    runs them through the array once for each output fold. Everything behind *issue* runs freely.

    Parameters
    ----------
    shape_in : Shape
        One code.
    in_lanes, out_lanes : int
        Elements of an input word, channels of an output beat.
    vector : int
        Words of a vector.
    folds : int
        Output beats of a vector.
    capacity : int
        Words of the ring; at least ``vector`` where ``folds > 1``.
    weights : int64 array
        ``(folds, vector, out_lanes, in_lanes)``, 0 where lanes are left over: what comes in them is
        don't-care.
    weight_shape : Shape
        Format of a weight.
    bias : int64 array
        ``(folds, out_lanes)`` at the accumulator's scale, the input's zero point folded in.
    acc_width : int
        Bits of the signed accumulators: they hold every final value.
    requant : Requant or None
        None hands out accumulators.
    shape_out : Shape
        One code of the output; ``signed(acc_width)`` without ``requant``.
    out_depth : int
        Beats of the output buffer.
    codebook : tuple of int, optional
        Rising values; memory holds the places of the weights among them.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape_in, in_lanes)))``
    o : ``Out(stream.Signature(ArrayLayout(shape_out, out_lanes)))``

    Raises
    ------
    ValueError
        If arrays have another shape, a weight does not fit its format or is not in the codebook, the
        capacity would deadlock, or accumulators are handed out in another format.
    """

    def __init__(
        self,
        shape_in: Shape,
        in_lanes: int,
        out_lanes: int,
        vector: int,
        folds: int,
        capacity: int,
        weights: NDArray[np.int64],
        weight_shape: Shape,
        bias: NDArray[np.int64],
        acc_width: int,
        requant: Requant | None,
        shape_out: Shape,
        out_depth: int,
        codebook: tuple[int, ...] | None = None,
    ) -> None:
        for name, array, shape in (
            ("weights", weights, (folds, vector, out_lanes, in_lanes)),
            ("bias", bias, (folds, out_lanes)),
        ):
            if array.shape != shape:
                raise ValueError(f"the shape of the {name} must be {shape}, not {array.shape}")
        if requant is None and Shape.cast(shape_out) != signed(acc_width):
            raise ValueError(f"accumulators go out as {signed(acc_width)!r}, not {shape_out!r}")
        self.requant = requant
        self.out_depth = out_depth
        self.vector = VectorBuffer(shape_in, in_lanes, vector, folds, capacity)
        stored = StoredWeights(weights=weights, shape=weight_shape, codebook=codebook)
        self.weights = WeightMemory(stored)
        self.array = MacArray(stored, bias, shape_in, acc_width)
        self.requantizer = (
            None
            if requant is None
            else Requantizer(requant, signed(acc_width), shape_out, out_lanes, folds)
        )
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(shape_in, in_lanes))),
                "o": Out(stream.Signature(data.ArrayLayout(shape_out, out_lanes))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a fold's last step to the output buffer."""
        # The array's operand registers are the second of the memories' two.
        return MEMORY_READ - 1 + self.array.latency + self._requant_latency

    @property
    def _requant_latency(self) -> int:
        return 0 if self.requantizer is None else self.requantizer.latency

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.vector = vector = self.vector
        m.submodules.weights = weights = self.weights
        m.submodules.array = array = self.array
        m.submodules.buffer = buffer = OutputBuffer(self.o.payload.shape(), self.out_depth)
        step = Signal()
        result = array.acc
        wiring.connect(m, wiring.flipped(self.i), vector.i)
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        m.d.comb += [
            step.eq(vector.readable & (buffer.available | ~vector.last)),
            vector.step.eq(step),
            weights.step.eq(step),
            array.x.eq(vector.data),
            array.w.eq(weights.data),
            buffer.reserve.eq(step & vector.last),
        ]
        if weights.stored.free:
            m.d.comb += array.free.eq(weights.free)
        issued = Signal()
        issued_last = Signal()
        m.d.sync += [issued.eq(step), issued_last.eq(vector.last)]
        m.d.comb += [array.valid.eq(issued), array.last.eq(issued_last)]
        if self.requantizer is not None:
            m.submodules.requantizer = requantizer = self.requantizer
            m.d.comb += [requantizer.i.eq(array.acc), requantizer.fold.eq(array.fold)]
            result = requantizer.o
        m.d.comb += [
            buffer.w_en.eq(delayed(m, array.done, self._requant_latency, "requantized")),
            buffer.w_data.eq(result),
        ]
        return m
