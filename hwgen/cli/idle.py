"""Options of ``hwgen quantize`` that would change nothing beside the others: said, not ignored."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hwgen.errors import BadInput

__all__ = ["idle_flags", "refuse_idle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """When an option changes nothing.

    Parameters
    ----------
    flag : str
        As it is typed.
    method : str
    because, edit : str
        Why, and the smallest edit that gives it a meaning.
    when : callable
        Takes the method's options, with the flag or without it; whether the flag is idle then.
    beside : tuple of str
        Flags beside which it is idle too, whatever their values.
    """

    flag: str
    method: str
    because: str
    edit: str
    when: Callable[[Any], bool] = lambda options: False
    beside: tuple[str, ...] = ()


SAVINGS = ("--memory-saved", "--multiplications-saved")
"""What the layer-wise search can be asked to save."""

RULES: tuple[Idle, ...] = (
    *(
        Idle(
            flag=flag,
            method="layerwise",
            when=lambda o: o.mode.value == "paper",
            because="the paper's walk goes by its tolerance alone",
            edit="give --mode improved",
        )
        for flag in SAVINGS
    ),
    Idle(
        flag="--multiplications",
        method="layerwise",
        when=lambda o: o.mode.value == "paper",
        because="the paper's walk weighs no costs against each other",
        edit="give --mode improved",
    ),
    *(
        Idle(
            flag=flag,
            method="layerwise",
            beside=SAVINGS,
            because="the most accurate network that saves as much is searched",
            edit=f"give neither {SAVINGS[0]} nor {SAVINGS[1]}",
        )
        for flag in ("--tolerance", "--multiplications")
    ),
    Idle(
        flag="--mirror",
        method="accumulator",
        when=lambda o: o.epochs == 0,
        because="nothing is fine-tuned",
        edit="give --epochs 4, say",
    ),
    *(
        Idle(
            flag=flag,
            method="cluster",
            when=lambda o: o.epochs == o.tune_epochs == 0,
            because="nothing is fine-tuned",
            edit="give --epochs or --tune-epochs of at least 1",
        )
        for flag in ("--mirror", "--batch", "--rate")
    ),
    Idle(
        flag="--scope",
        method="cluster",
        when=lambda o: o.sparsity == 0,
        because="nothing is pruned",
        edit="give a --sparsity above 0",
    ),
    Idle(
        flag="--entry-bits",
        method="cluster",
        when=lambda o: not o.codebook,
        because="there is no codebook",
        edit="give --codebook",
    ),
    Idle(
        flag="--mirror",
        method="evolve",
        when=lambda o: o.epochs == o.final_epochs == 0,
        because="nothing is fine-tuned",
        edit="give --epochs or --final-epochs above 0",
    ),
    Idle(
        flag="--population",
        method="evolve",
        when=lambda o: o.sampler.value != "nsga2",
        because="this --sampler has no generations",
        edit="give --sampler nsga2",
    ),
    *(
        Idle(
            flag=flag,
            method="evolve",
            when=lambda o: o.final_epochs == 0,
            because="the network chosen is not trained again",
            edit="give --final-epochs above 0",
        )
        for flag in ("--finalists", "--final-rate")
    ),
)
"""Options that others switch off; what the options of a method refuse well enough needs no rule."""


def idle_flags(method: str) -> frozenset[str]:
    """The flags of a method that others may switch off."""
    return frozenset(rule.flag for rule in RULES if rule.method == method)


def refuse_idle(given: argparse.Namespace, method: str, options: Any) -> None:
    """Refuse what was typed and changes nothing.

    Parameters
    ----------
    given : Namespace
        None where an option was not typed.
    method : str
    options : object
        The method's, made of what was typed, with :func:`idle_flags` or without them.

    Raises
    ------
    BadInput
    """
    values: Mapping[str, Any] = vars(given)

    def typed(flag: str) -> bool:
        return values.get(flag.removeprefix("--").replace("-", "_")) is not None

    for rule in RULES:
        if rule.method != method or not typed(rule.flag):
            continue
        if rule.when(options) or any(map(typed, rule.beside)):
            raise BadInput(
                f"{rule.flag} changes nothing here, as {rule.because}; {rule.edit}, or leave"
                f" {rule.flag} out"
            )
