"""A quantised network in floating point, layer by layer, so that biases can make up for its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from hwgen.ir import INPUT, Fixed
from quant import graph as fg
from quant.assemble import Assembler
from quant.formats import Floats
from quant.straight import round_to_fixed

__all__ = ["Forward", "one_thread"]

BiasOf = Callable[[str, Floats], Floats]
"""Of a layer's name and what its biases should be ``(out,)``: what they become when rounded."""


@cache
def _controller() -> ThreadpoolController:
    """Finding the libraries takes longer than a small layer."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that sums have one order whatever PyTorch and BLAS are set to."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@dataclass(kw_only=True, eq=False)
class Forward:
    """Runs calibration images through quantised layers.

    The arithmetic is that of float32, which decides nothing but the values of the biases. Under
    :func:`one_thread` it is the same whatever the number of threads.

    Parameters
    ----------
    assembler : Assembler
        Of the network of raw pixels.
    images : uint8 array
        ``(N, C, H, W)``.
    outputs : mapping of str to Fixed
        Formats of the layers' outputs: see :class:`quant.plan.Plan`.
    """

    assembler: Assembler
    images: NDArray[np.uint8]
    outputs: Mapping[str, Fixed]
    _means: dict[str, Floats] = field(init=False, default_factory=dict)
    _formats: dict[str, Fixed] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for group in self.assembler.makers:
            if group.node.name in self.outputs:
                self._formats[group.last.name] = self.outputs[group.node.name]
        graph = self.assembler.graph
        exact = {node.name: (node.weight, node.bias) for node in graph.mac_nodes}

        def keep(name: str, mean: Floats) -> Floats:
            self._means[name] = mean + exact[name][1]
            return exact[name][1]

        self._run({name: weight for name, (weight, _) in exact.items()}, keep, {})

    def correct(self, weights: Mapping[str, Floats], bias_of: BiasOf) -> None:
        """Ask for the biases of all layers, one after the other.

        What is asked for makes the mean output of the layer, on inputs that carry the errors of the
        quantised layers before it, that of the float network.

        Parameters
        ----------
        weights : mapping of str to float64 array
            What the codes of every layer stand for.
        bias_of : callable
        """

        def ask(name: str, mean: Floats) -> Floats:
            return bias_of(name, self._means[name] - mean)

        self._run(weights, ask, self._formats)

    def _run(
        self, weights: Mapping[str, Floats], bias_of: BiasOf, formats: Mapping[str, Fixed]
    ) -> None:
        """Run all layers; ``bias_of`` is given each layer's mean output without its biases."""
        graph = self.assembler.graph
        with torch.no_grad():
            values = {INPUT: torch.tensor(self.images, dtype=torch.float32)}
            for node in graph.nodes[1:]:
                inputs = [values[name] for name in node.inputs]
                if isinstance(node, fg.Conv | fg.Linear):
                    found = _mac(node, weights[node.name], inputs[0], bias_of)
                else:
                    found = node.evaluate(*inputs)
                form = formats.get(node.name)
                values[node.name] = found if form is None else round_to_fixed(found, form)


def _mac(node: fg.Conv | fg.Linear, weight: Floats, source: Tensor, bias_of: BiasOf) -> Tensor:
    """The outputs of a layer of other weights, its biases those that ``bias_of`` gives."""
    layer = replace(node, weight=weight, bias=np.zeros(len(weight)))
    found = layer.evaluate(source)
    axes = [axis for axis in range(found.ndim) if axis != 1]
    bias = bias_of(node.name, found.numpy().mean(axis=tuple(axes), dtype=np.float64))
    shape = [-1 if axis == 1 else 1 for axis in range(found.ndim)]
    return found + torch.tensor(bias, dtype=found.dtype).reshape(shape)
