"""What a build is asked for, parsed and checked at the door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hwgen.errors import BadInput, DoesNotFit
from hwgen.targets import Part, find_part
from quant.config import LayerBits, QuantConfig
from quant.formats import Calibration

__all__ = ["HardwareOptions", "parse_bits", "parse_pins", "quant_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOptions:
    """What decides the hardware of a network.

    Exactly one of ``fps``, ``cycles`` and ``multipliers`` is the goal; 1,000 frames a second by default.

    Parameters
    ----------
    target : Part
    clock_mhz : float
        Clock that ``fps`` counts with and place and route aims for.
    fps : float, optional
        Frames a second at that clock.
    cycles : int, optional
        Cycles a frame.
    multipliers : int, optional
        Most multipliers.
    pins : mapping of str to (int, int)
        Layers with fixed ``(in_lanes, out_lanes)``.
    argmax : bool
        Deliver the class instead of the outputs.
    """

    target: Part
    clock_mhz: float
    fps: float | None = None
    cycles: int | None = None
    multipliers: int | None = None
    pins: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    argmax: bool = False

    def __post_init__(self) -> None:
        goals = [g for g in (self.fps, self.cycles, self.multipliers) if g is not None]
        if len(goals) != 1 or not goals[0] > 0:
            raise BadInput(
                "exactly one of the frame rate, the cycles and the multipliers must be given, above 0, not"
                f" fps={self.fps}, cycles={self.cycles}, multipliers={self.multipliers}"
            )
        if not 0 < self.clock_mhz <= 2000:
            raise BadInput(f"the clock must be above 0 and at most 2000 MHz, not {self.clock_mhz}")

    @classmethod
    def of(
        cls,
        target: str,
        *,
        clock_mhz: float | None = None,
        fps: float | None = None,
        cycles: int | None = None,
        multipliers: int | None = None,
        pins: Mapping[str, tuple[int, int]] | None = None,
        argmax: bool = False,
    ) -> HardwareOptions:
        """Options with the part looked up by name and the defaults filled in."""
        part = find_part(target)
        if fps is None and cycles is None and multipliers is None:
            fps = 1000.0
        return cls(
            target=part,
            clock_mhz=part.clock_mhz if clock_mhz is None else clock_mhz,
            fps=fps,
            cycles=cycles,
            multipliers=multipliers,
            pins=dict(pins or {}),
            argmax=argmax,
        )

    @property
    def frame_cycles(self) -> int | None:
        """Cycles that a frame may take; None where multipliers are the goal."""
        if self.cycles is not None:
            return self.cycles
        if self.fps is None:
            return None
        cycles = int(self.clock_mhz * 1e6 / self.fps)
        if cycles < 1:
            raise DoesNotFit(
                f"{self.fps:g} frames a second need a clock of more than {self.clock_mhz:g} MHz; ask for fewer"
            )
        return cycles


def parse_pins(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """``LAYER=INxOUT`` texts as lanes by layer.

    >>> parse_pins(["conv1=15x2"])
    {'conv1': (15, 2)}

    Raises
    ------
    BadInput
    """
    pins: dict[str, tuple[int, int]] = {}
    for text in texts:
        layer, _, lanes = text.partition("=")
        numbers = lanes.split("x")
        if not layer or len(numbers) != 2 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
            raise BadInput(
                f"a pin must look like LAYER=INxOUT with lanes of at least 1, not {text!r}"
            )
        if layer in pins:
            raise BadInput(f"layer {layer} is pinned twice; keep one")
        pins[layer] = (int(numbers[0]), int(numbers[1]))
    return pins


def parse_bits(text: str, base: LayerBits | None = None) -> LayerBits:
    """``8`` (weights and activations) or ``weights/biases/activations`` such as ``4/12/8``.

    >>> parse_bits("4/12/8").biases
    12

    Raises
    ------
    BadInput
    """
    parts = text.split("/")
    if not all(p.isdecimal() for p in parts) or len(parts) not in (1, 3):
        raise BadInput(
            f"bits must be a number from 1 to 16, or weights/biases/activations, not {text!r}"
        )
    numbers = [int(p) for p in parts]
    if len(numbers) == 1:
        biases = (base or LayerBits()).biases
        return LayerBits(weights=numbers[0], biases=biases, activations=numbers[0])
    return LayerBits(weights=numbers[0], biases=numbers[1], activations=numbers[2])


def quant_config(
    bits: str = "8", layer_bits: Iterable[str] = (), *, calibration: str = "mse"
) -> QuantConfig:
    """Quantiser parameters from texts: ``layer_bits`` are ``LAYER=BITS``.

    Raises
    ------
    BadInput
    """
    base = parse_bits(bits)
    layers: dict[str, LayerBits] = {}
    for text in layer_bits:
        layer, _, value = text.partition("=")
        if not layer or not value:
            raise BadInput(f"bits of a layer must look like LAYER=BITS, not {text!r}")
        layers[layer] = parse_bits(value, base)
    kinds = {kind.value: kind for kind in Calibration}
    if calibration not in kinds:
        raise BadInput(f"the calibration must be one of {', '.join(kinds)}, not {calibration!r}")
    return QuantConfig(
        bits=base, layers=layers, weights=kinds[calibration], activations=kinds[calibration]
    )
