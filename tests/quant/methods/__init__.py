"""Tests of the quantisation methods."""
