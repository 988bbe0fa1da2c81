"""The quantisation methods: each a function of its own name that gives a :class:`.Result`."""

from quant.methods.result import Result

__all__ = ["Result"]
