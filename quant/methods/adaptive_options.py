"""What adaptive quantisation is asked to do, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from hwgen.errors import BadInput
from quant.checks import check_member, check_whole
from quant.methods.adaptive_coders import Form, Start
from quant.splits import FEWEST

__all__ = ["ALONE", "STARTS", "AdaptiveOptions", "Control", "Ranking"]

ENTRY_BITS, PARENTS = 8, 4
STEPS: Mapping[Form, float] = {Form.CLIP: 0.3, Form.CODEBOOK: 0.08}
"""Where they are not given."""


class Ranking(Enum):
    """What a search ranks candidates by."""

    LOSS = "loss"
    """By cross-entropy, equals by accuracy: far less of it is chance."""
    ACCURACY = "accuracy"
    """By accuracy, equals by cross-entropy."""


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
    form : Form, optional
        What evolves; by default :attr:`Form.CLIP`, or the form that a control has by its nature.
    entry_bits : int, optional
        Width of a codebook's entries, ``bits`` to 16, by default 8. Not with :attr:`Form.CLIP`,
        which has no entries.
    evaluations : int
        Networks that are tried on the search set, the known quantisers at the start included.
    activation_bits : int
        Width of the activations, 2 to 16: of the baseline's formats, which stay.
    parents, offspring : int
        mu and lambda of the evolution strategy, ``1 <= mu < lambda``; by default 4, or half of
        lambda where that is less, and 12. A control has no parents; it is saved each time that it
        has tried ``offspring`` networks.
    step : float, optional
        About the first standard deviation of a gene, which is drawn from 0.1 to 3 times as much. By
        default 0.08 for boundaries, where 1 is the width of a bin, and 0.3 for clip bounds, where 1
        is a quarter of a doubling.
    images : int, optional
        Search images that the search looks at, the first ones; all by default.
    correct_biases : bool
        Whether biases make up for the mean error that the weights cause on calibration images, in
        the candidates and in all controls.
    ranking : Ranking
        What candidates are ranked by, the controls' too. The result is in any case the most accurate
        of the eight best, equals by cross-entropy, on all search images.
    control : Control, optional
        Instead of the evolution strategy.

    Raises
    ------
    BadInput
        If a value is out of range, or an option is given that changes nothing.
    """

    bits: int = 4
    form: Form | None = None
    entry_bits: int | None = None
    evaluations: int = 400
    activation_bits: int = 8
    parents: int | None = None
    offspring: int = 12
    step: float | None = None
    images: int | None = None
    correct_biases: bool = True
    ranking: Ranking = Ranking.LOSS
    control: Control | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("bits", 2, 8),
            ("activation_bits", 2, 16),
            ("evaluations", 1, None),
            ("offspring", 2, None),
        ):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), low, high))
        for name, low, high in (
            ("images", FEWEST, None),
            ("entry_bits", 2, 16),
            ("parents", 1, None),
        ):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_whole(name, value, low, high))
        if self.step is not None and not 0 < self.step <= 10:
            raise BadInput(f"step must be above 0 and at most 10, not {self.step}; try 0.1")
        check_member("ranking", self.ranking, Ranking)
        if self.form is not None:
            check_member("form", self.form, Form)
        if self.control is not None:
            check_member("control", self.control, Control)
        self._check_effects()
        if self.entry_bits is not None and self.entry_bits < self.bits:
            raise BadInput(
                f"entry_bits must be at least bits, {self.bits}, not {self.entry_bits}: a codebook's"
                f" entries must not be narrower than what is stored; give entry_bits={self.bits}"
            )
        if self.mu >= self.offspring:
            raise BadInput(
                f"there must be fewer parents than offspring, {self.offspring}, not {self.mu};"
                f" give parents={max(1, self.offspring // 3)}"
            )

    def _check_effects(self) -> None:
        """Refuse options that would change nothing."""
        own = self.searched_form
        if self.control is not None and self.control in ALONE and self.form not in (None, own):
            raise BadInput(
                f"the control {self.control.value} is of the form {own.value} whatever form is asked"
                f" for; leave form out, or give {own.value}"
            )
        if self.entry_bits is not None and own is not Form.CODEBOOK:
            raise BadInput(
                f"entry_bits={self.entry_bits} changes nothing without a codebook: with the form"
                " clip, what is stored is multiplied; leave it out, or ask for the form codebook"
            )
        if self.parents is not None and self.control is not None:
            raise BadInput(
                f"parents={self.parents} changes nothing with the control {self.control.value}, which"
                " has no parents; leave it out"
            )

    @property
    def searched_form(self) -> Form:
        """The form of all candidates."""
        if self.control is not None and self.control in ALONE:
            return ALONE[self.control][0]
        return self.form or Form.CLIP

    @property
    def entries(self) -> int:
        """Width of a codebook's entries: never below :attr:`bits`."""
        return ENTRY_BITS if self.entry_bits is None else self.entry_bits

    @property
    def first_step(self) -> float:
        """About the first standard deviation of a gene."""
        return STEPS[self.searched_form] if self.step is None else self.step

    @property
    def mu(self) -> int:
        """Parents of the evolution strategy."""
        return min(PARENTS, self.offspring // 2) if self.parents is None else self.parents

    def record(self) -> dict[str, Any]:
        """The options as JSON values, each as it is used; null where there is none."""
        values = asdict(self) | {"form": self.searched_form}
        values["entry_bits"] = self.entries if self.searched_form is Form.CODEBOOK else None
        values["step"] = self.first_step
        values["parents"] = self.mu if self.control is None else None
        return {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}
