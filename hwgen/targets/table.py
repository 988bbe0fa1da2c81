"""The parts hwgen knows. Counts are the vendors' data sheets', in blocks the tools can use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hwgen.errors import BadInput
from hwgen.targets.family import Family
from hwgen.targets.part import Part

__all__ = ["PARTS", "find_part"]


def _xc7(name: str, lut: int, dsp: int, ramb36: int) -> Part:
    return Part(
        name=f"xc7-{name}",
        family=Family.XC7,
        lut=lut,
        ff=2 * lut,
        dsp=dsp,
        bram=2 * ramb36,
        clock_mhz=150.0,
    )


def _ecp5(name: str, lut: int, dsp: int, bram: int) -> Part:
    return Part(
        name=f"ecp5-{name}",
        family=Family.ECP5,
        lut=lut,
        ff=lut,
        dsp=dsp,
        bram=bram,
        device=name,
        package="CABGA381",
        clock_mhz=100.0,
    )


# nextpnr gives the 25k, 45k and 85k dies these very counts of TRELLIS_COMB, MULT18X18D and DP16KD.
_TABLE = (
    _xc7("s50", 32600, 120, 75),
    _xc7("a35t", 20800, 90, 50),
    _xc7("a100t", 63400, 240, 135),
    _xc7("a200t", 134600, 740, 365),
    _xc7("k325t", 203800, 840, 445),
    _xc7("z010", 17600, 80, 60),
    _xc7("z020", 53200, 220, 140),
    _xc7("z045", 218600, 900, 545),
    _ecp5("25k", 24288, 28, 56),
    _ecp5("45k", 43848, 72, 108),
    _ecp5("85k", 83640, 156, 208),
    Part(
        name="ice40-up5k",
        family=Family.ICE40,
        lut=5280,
        ff=5280,
        dsp=8,
        bram=30,
        spram_kbit=1024,
        device="up5k",
        package="sg48",
        clock_mhz=20.0,
    ),
    Part(
        name="ice40-hx8k",
        family=Family.ICE40,
        lut=7680,
        ff=7680,
        dsp=0,
        bram=32,
        device="hx8k",
        package="ct256",
        clock_mhz=60.0,
    ),
)

PARTS: Mapping[str, Part] = MappingProxyType({part.name: part for part in _TABLE})
"""All parts by name."""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def find_part(name: str) -> Part:
    """The part called ``name``; case, dashes and underscores do not matter.

    Raises
    ------
    BadInput
        If there is none; the message lists the names.

    >>> find_part("ECP5_85k").dsp
    156
    """
    for part in PARTS.values():
        if _plain(part.name) == _plain(name):
            return part
    known = ", ".join(PARTS)
    raise BadInput(f"the target must be a part hwgen knows, not {name!r}; give one of {known}")
