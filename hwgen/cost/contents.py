"""Memory contents, moved from initial blocks to files before synthesis.

Yosys takes a time quadratic in the words of an initial block: half a minute for LeNet-5, against
half a second with ``$readmemh``. The words are the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HoistedText", "hoist_contents"]

_BLOCK = re.compile(
    r"^[ \t]*initial begin\n((?:[ \t]*\w+\[\d+\] = \d+'[hd][0-9a-f]+;\n)+)[ \t]*end\n", re.MULTILINE
)
_WORD = re.compile(r"(\w+)\[(\d+)\] = \d+'([hd])([0-9a-f]+);")


@dataclass(frozen=True, slots=True, kw_only=True)
class HoistedText:
    """A design without initial blocks of memories.

    Parameters
    ----------
    verilog : str
        The design, with ``$readmemh`` in their place.
    files : tuple of (str, str)
        Names and texts of the files it reads.
    """

    verilog: str
    files: tuple[tuple[str, str], ...]


def hoist_contents(verilog: str, stem: str) -> HoistedText:
    """Replace each initial block that does nothing but fill one memory with constants.

    Parameters
    ----------
    verilog : str
        A design; blocks of any other form stay.
    stem : str
        First part of the files' names.
    """
    files: list[tuple[str, str]] = []

    def hoist(block: re.Match[str]) -> str:
        words = _WORD.findall(block[1])
        names = {name for name, *_ in words}
        if len(names) != 1:
            return block[0]
        file = f"{stem}.memory{len(files)}.hex"
        # An address only where the next word is not the next address.
        lines, expected = [], 0
        for _, address, base, digits in words:
            at = int(address)
            word = digits if base == "h" else f"{int(digits):x}"
            lines.append(word if at == expected else f"@{at:x} {word}")
            expected = at + 1
        files.append((file, "\n".join(lines) + "\n"))
        return f'  initial $readmemh("{file}", {names.pop()});\n'

    return HoistedText(verilog=_BLOCK.sub(hoist, verilog), files=tuple(files))
