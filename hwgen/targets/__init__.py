"""FPGA families and parts, as data."""

from hwgen.targets.family import Family
from hwgen.targets.part import Part
from hwgen.targets.table import PARTS, find_part

__all__ = ["PARTS", "Family", "Part", "find_part"]
