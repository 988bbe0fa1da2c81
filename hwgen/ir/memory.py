"""How read-only memories are split by depth: what the components build and the audit expects."""

from __future__ import annotations

__all__ = ["rom_chunks"]

_BLOCKS = ((2048, 9), (1024, 18), (512, 36))
"""Words and bits of a block of 18 kbit; the last bit of nine is lost in other shapes."""


def rom_chunks(words: int, width: int) -> tuple[range, ...]:
    """Addresses of each memory that a read-only memory is built from, in order.

    A chunk is as deep as one block memory can be, so that no choice between blocks follows a
    block's slow output. Of the block's shapes the one that needs the fewest blocks, of equal ones
    the deepest. All chunks but the last have the same power of two of words.

    Parameters
    ----------
    words : int
        Depth, at least 1.
    width : int
        Bits of a word, at least 1.

    Returns
    -------
    tuple of range

    Examples
    --------
    >>> rom_chunks(2048, 8)
    (range(0, 2048),)
    >>> rom_chunks(5000, 8)
    (range(0, 2048), range(2048, 4096), range(4096, 5000))
    >>> rom_chunks(1200, 32)
    (range(0, 512), range(512, 1024), range(1024, 1200))
    """
    depth, _ = min(
        _BLOCKS, key=lambda block: (-(-words // block[0]) * -(-width // block[1]), -block[0])
    )
    return tuple(range(start, min(start + depth, words)) for start in range(0, words, depth))
