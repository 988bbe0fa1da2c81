"""Parts as data."""

from __future__ import annotations

import pytest

from hwgen.errors import BadInput
from hwgen.targets import PARTS, Family, Part, find_part


def test_find_part() -> None:
    assert find_part("ecp5-85k").dsp == 156
    assert find_part("XC7A35T").name == "xc7-a35t"
    assert find_part("ice40_up5k").bram_kbit == 120
    for name, part in PARTS.items():
        assert find_part(name) is part
        assert part.placeable is part.family.placeable
    with pytest.raises(BadInput, match=r"not 'ecp5'; give one of .*ecp5-85k.*ice40-up5k"):
        find_part("ecp5")


def test_block_ram_units() -> None:
    assert Family.ECP5.bram18(7) == Family.XC7.bram18(7) == 7
    assert [Family.ICE40.bram18(n) for n in (0, 1, 4, 5, 9, 10)] == [0, 1, 1, 2, 2, 3]
    assert find_part("ice40-up5k").bram18 == 6  # 120 kbit hold 6 blocks of 18, not 7


def test_bad_part() -> None:
    with pytest.raises(BadInput, match="must not be negative"):
        Part(name="p", family=Family.ECP5, lut=0, ff=1, dsp=0, bram=0, clock_mhz=1.0)
    with pytest.raises(BadInput, match="clock must be positive"):
        Part(name="p", family=Family.ECP5, lut=1, ff=1, dsp=0, bram=0, clock_mhz=0.0)
