"""Readers of the data sets; :mod:`quant.datasets` is the door."""
