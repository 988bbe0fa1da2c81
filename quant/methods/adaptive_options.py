"""What adaptive quantisation is asked to do, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from hwgen.errors import BadInput
from quant.checks import check_member, check_whole
from quant.methods.adaptive_genes import Form, Start
from quant.splits import FEWEST

__all__ = ["ALONE", "STARTS", "AdaptiveOptions", "Control"]


class Control(Enum):
    """What the evolution strategy is measured against, at the same number of evaluations.

    The first evaluation of all but :attr:`RANDOM` is the quantiser of that name, the others are
    samples around it: with ``evaluations=1`` it is the plain quantiser.
    """

    LINEAR = "linear"
    """Uniform levels over the range without saturation."""
    MSE = "mse"
    """Uniform levels, the clip bounds of the least squared error of weights and of biases."""
    LLOYD = "lloyd"
    """A codebook of Lloyd-Max levels."""
    RANDOM = "random"
    """Samples around the best of the strategy's own starts, with the strategy's first steps."""


STARTS: Mapping[Form, tuple[Start, ...]] = {
    Form.CLIP: (Start.DESCENT, Start.OUTPUT, Start.MSE, Start.LINEAR),
    Form.CODEBOOK: (
        *(Start.DESCENT, Start.OUTPUT, Start.LLOYD, Start.KMEANS, Start.WEIGHTED, Start.MSE),
        Start.LINEAR,
    ),
}
"""What the search begins with, by form; all are evaluated."""

ALONE: Mapping[Control, tuple[Form, Start]] = {
    Control.LINEAR: (Form.CLIP, Start.LINEAR),
    Control.MSE: (Form.CLIP, Start.MSE),
    Control.LLOYD: (Form.CODEBOOK, Start.LLOYD),
}
"""Controls that begin with one quantiser: its form and itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveOptions:
    """What adaptive quantisation is asked to do.

    Parameters
    ----------
    bits : int
        Width of all weights as they are stored and of all biases, 2 to 8.
    form : Form
        What evolves. Controls of one form only go their own way.
    entry_bits : int
        Width of a codebook's entries, ``bits`` to 16.
    evaluations : int
        Networks that are tried on the search set, the known quantisers at the start included.
    activation_bits : int
        Width of the activations, 2 to 16: of the baseline's formats, which stay.
    parents, offspring : int
        mu and lambda of the evolution strategy, ``1 <= mu < lambda``.
    step : float
        First standard deviation of a gene; 1 is about the width of a bin.
    images : int, optional
        Search images that the search looks at, the first ones; all by default.
    correct_biases : bool
        Whether biases make up for the mean error that the weights cause on calibration images, in
        the candidates and in all controls.
    control : Control, optional
        Instead of the evolution strategy.

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    bits: int = 4
    form: Form = Form.CLIP
    entry_bits: int = 8
    evaluations: int = 400
    activation_bits: int = 8
    parents: int = 4
    offspring: int = 12
    step: float = 0.5
    images: int | None = None
    correct_biases: bool = True
    control: Control | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("bits", 2, 8),
            ("entry_bits", 2, 16),
            ("activation_bits", 2, 16),
            ("evaluations", 1, None),
            ("parents", 1, None),
            ("offspring", 2, None),
        ):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), low, high))
        if self.images is not None:
            object.__setattr__(self, "images", check_whole("images", self.images, FEWEST))
        if self.entry_bits < self.bits:
            raise BadInput(
                f"entry_bits must be at least bits, {self.bits}, not {self.entry_bits}: a codebook's"
                f" entries must not be narrower than what is stored; give entry_bits={self.bits}"
            )
        if self.parents >= self.offspring:
            raise BadInput(
                f"there must be fewer parents than offspring, {self.offspring}, not {self.parents};"
                f" give parents={max(1, self.offspring // 3)}"
            )
        if not 0 < self.step <= 10:
            raise BadInput(f"step must be above 0 and at most 10, not {self.step}; try 0.5")
        check_member("form", self.form, Form)
        if self.control is not None:
            check_member("control", self.control, Control)

    def record(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = asdict(self)
        return {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}
