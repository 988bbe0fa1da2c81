"""Tests of the integer network."""
