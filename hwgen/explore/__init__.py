"""Sweeps over a network's choices, with tables and plots."""
