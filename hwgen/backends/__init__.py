"""Renderers of a dataflow."""
