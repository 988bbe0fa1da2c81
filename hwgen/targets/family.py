"""FPGA families: the sizes of their blocks."""

from __future__ import annotations

from enum import Enum

__all__ = ["Family"]


class Family(Enum):
    """An FPGA family.

    Members
    -------
    XC7
        AMD 7 series and Zynq-7000: six-input LUTs, DSP48E1, RAMB18E1 and RAMB36E1.
    ECP5
        Lattice ECP5: four-input LUTs, MULT18X18D, DP16KD.
    ICE40
        Lattice iCE40: four-input LUTs, SB_MAC16 (UltraPlus only), SB_RAM40_4K.
    """

    XC7 = "xc7"
    ECP5 = "ecp5"
    ICE40 = "ice40"

    @property
    def dsp_operands(self) -> tuple[int, int]:
        """Widths in bits of the two signed operands one DSP block multiplies, the larger first."""
        return {Family.XC7: (25, 18), Family.ECP5: (18, 18), Family.ICE40: (16, 16)}[self]

    @property
    def bram_kbit(self) -> int:
        """Kibibits of one block RAM; a 7-series RAMB36E1 counts as two blocks of 18."""
        return 4 if self is Family.ICE40 else 18

    @property
    def placeable(self) -> bool:
        """Whether this project places and routes the family (nextpnr with an open database)."""
        return self is not Family.XC7

    def bram18(self, blocks: int) -> int:
        """``blocks`` of this family as whole blocks of 18 kbit, rounded up.

        >>> Family.ICE40.bram18(30), Family.ECP5.bram18(30)
        (7, 30)
        """
        return -(-blocks * self.bram_kbit // 18)
