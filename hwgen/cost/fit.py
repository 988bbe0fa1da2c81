"""Whether a design fits a part, and what takes most when it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwgen.cost.cells import Counts
from hwgen.cost.synth import SynthResult
from hwgen.errors import DoesNotFit
from hwgen.targets import PARTS, Family, Part

__all__ = ["Shortage", "check_fit", "does_not_fit", "shortages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A resource of which a design needs more than a part has.

    Parameters
    ----------
    resource : str
        ``LUTs``, ``flip-flops``, ``DSP blocks`` or ``block RAMs of .. kbit``.
    need, have : int
    largest : tuple of (str, int)
        The instances of the top module that take most of it, by falling need.
    """

    resource: str
    need: int
    have: int
    largest: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        text = f"{self.need} {self.resource}, it has {self.have}"
        if self.largest:
            text += f" (most in {', '.join(f'{name} {need}' for name, need in self.largest)})"
        return text


def _kinds(part: Part) -> tuple[tuple[str, int, Callable[[Counts], int]], ...]:
    return (
        ("logic cells" if part.family.value == "ice40" else "LUTs", part.lut, lambda c: c.lut),
        ("flip-flops", part.ff, lambda c: c.ff),
        ("DSP blocks", part.dsp, lambda c: c.dsp),
        (f"block RAMs of {part.family.bram_kbit} kbit", part.bram, lambda c: c.bram),
    )


def shortages(result: SynthResult, part: Part, *, names: int = 3) -> tuple[Shortage, ...]:
    """What ``part`` has too little of for ``result``, each with the ``names`` largest instances."""
    found = []
    for resource, have, count in _kinds(part):
        need = count(result.counts)
        if need > have:
            by_need = sorted(
                ((name or result.top, count(counts)) for name, counts in result.instances.items()),
                key=lambda item: (-item[1], item[0]),
            )
            largest = tuple((name, taken) for name, taken in by_need[:names] if taken)
            found.append(Shortage(resource=resource, need=need, have=have, largest=largest))
    return tuple(found)


def _larger(result: SynthResult, part: Part) -> str:
    for other in sorted(PARTS.values(), key=lambda p: p.lut):
        if other.family is part.family and other.lut > part.lut and not shortages(result, other):
            return f", or take a larger part such as {other.name}"
    return ", or take a part of a larger family" if part.family is Family.ICE40 else ""


def does_not_fit(result: SynthResult, part: Part, found: Sequence[Shortage]) -> DoesNotFit:
    """The error for ``found``, with what would help."""
    needs = "; ".join(map(str, found))
    # Weights take the same memory at any frame rate; multipliers and what is around them do not.
    if all("RAM" in shortage.resource for shortage in found):
        advice = "Use narrower weights or fewer channels"
    else:
        advice = "Ask for a lower frame rate (fewer multipliers), narrower codes or fewer channels"
    return DoesNotFit(
        f"the design does not fit {part.name}: it needs {needs}. {advice}{_larger(result, part)}"
    )


def check_fit(result: SynthResult, part: Part) -> None:
    """Refuse a design that does not fit.

    Raises
    ------
    DoesNotFit
        Naming each resource, what is needed, what the part has, and the instances that take most.
    """
    found = shortages(result, part)
    if found:
        raise does_not_fit(result, part, found)
