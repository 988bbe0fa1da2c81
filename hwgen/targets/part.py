"""An FPGA part: what it holds and how the tools call it."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.errors import BadInput
from hwgen.targets.family import Family

__all__ = ["Part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An FPGA part.

    Parameters
    ----------
    name : str
        Name on the command line, ``<family>-<device>``.
    family : Family
    lut, ff : int
        LUTs and flip-flops. An iCE40 logic cell holds one of each, and shares them with a carry.
    dsp : int
        Multiplier blocks of ``family.dsp_operands`` bits.
    bram : int
        Block RAMs of ``family.bram_kbit`` kbit, which can be initialised.
    spram_kbit : int
        Further memory that cannot be initialised (UltraPlus SPRAM). Hwgen does not use it.
    device, package : str
        Arguments of nextpnr without the dashes; empty where there is no place and route.
    clock_mhz : float
        Clock to aim at when the user gives none: what plain designs reach on the part.

    Raises
    ------
    BadInput
        If a count is negative, or there are no LUTs or flip-flops.
    """

    name: str
    family: Family
    lut: int
    ff: int
    dsp: int
    bram: int
    spram_kbit: int = 0
    device: str = ""
    package: str = ""
    clock_mhz: float

    def __post_init__(self) -> None:
        if min(self.lut, self.ff) < 1 or min(self.dsp, self.bram, self.spram_kbit) < 0:
            raise BadInput(
                f"part {self.name}: counts must not be negative, LUTs and FFs at least 1"
            )
        if self.clock_mhz <= 0:
            raise BadInput(
                f"part {self.name}: the clock must be positive, not {self.clock_mhz} MHz"
            )

    @property
    def bram18(self) -> int:
        """Whole blocks of 18 kbit the part's block RAM amounts to."""
        return self.bram * self.family.bram_kbit // 18

    @property
    def bram_kbit(self) -> int:
        """Kibibits of block RAM that can be initialised."""
        return self.bram * self.family.bram_kbit

    @property
    def placeable(self) -> bool:
        """Whether nextpnr can place and route on this part."""
        return bool(self.device)
