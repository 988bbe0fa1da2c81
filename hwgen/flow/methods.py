"""The quantisation methods on a model and a data set, and what is said of their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hwgen.errors import BadInput
from hwgen.flow.model import Model, crop_images
from quant.config import QuantConfig
from quant.cost import network_cost
from quant.data.dataset import Dataset
from quant.methods.result import Result
from quant.progress import Progress
from quant.splits import Splits

__all__ = [
    "METHODS",
    "METHOD_FILE",
    "SAVED",
    "drop_note",
    "limit_message",
    "make_options",
    "network_digest",
    "pruning_note",
    "quantize_by",
    "result_rows",
    "result_table",
    "saved_method",
    "splits_of",
]

METHODS = ("linear", "adaptive", "layerwise", "evolve", "cluster", "accumulator")
"""The methods: each a function of its name in :mod:`quant`."""

METHOD_FILE = "method.json"
"""What a method reports of a saved network, in the network's folder."""


FIGURES = (
    ("ratio", "times smaller than in float32", "{:.2f}"),
    ("sparsity", "weights pruned", "{:.1%}"),
    ("pruned_search", "  in floats, before clustering", "{:.2%}"),
    ("accumulators", "widest accumulator, bits", "{}"),
    ("evaluations", "evaluations", "{:,}"),
)
"""What records may hold besides accuracies and cost: name, label and form."""

PRUNING_LOSS = 0.02
"""Share of the search images that pruning may cost before it is said."""

SAVED = (
    "Saved: against 8 bits for each weight, bias and output and nothing else. Wider biases,"
    " multipliers, codebooks and outputs that are accumulators count in full."
)
"""What the rows of :func:`result_rows` on savings compare with, and why they may be below 0."""


def splits_of(model: Model, data: Dataset, search: int | None = None) -> Splits:
    """Training, search and test images for a model; see :meth:`.Splits.of`.

    Parameters
    ----------
    model : Model
    data : Dataset
    search : int, optional
        Search images to use, the first ones; all held-out images by default.

    Raises
    ------
    BadInput
        If the images are too few, of another size, or two sets share some.
    """
    size = model.graph.input_shape[1:]
    crop_images(data.test_images[:1], size, model.name)
    return Splits.of(data, held_out=model.held_out, search=search, size=(size[0], size[1]))


def quantize_by(
    method: str,
    model: Model,
    splits: Splits,
    *,
    options: Any = None,
    config: QuantConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state: Path | None = None,
    storage: str | None = None,
) -> Result:
    """Quantise by a method's name.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`.
    model : Model
    splits : Splits
    options : object, optional
        The method's own, such as :class:`quant.AdaptiveOptions`; its defaults if None.
    config : QuantConfig, optional
        Of ``linear`` alone.
    seed : int
        Of all chance; ``linear`` has none.
    progress : Progress, optional
    state : Path, optional
        File that an interrupted search goes on from; the study's file of ``evolve``.
    storage : str, optional
        Database of the study of ``evolve`` instead.

    Raises
    ------
    BadInput
        If there is no such method, it is given what it does not take, or as the method says.
    """
    if method not in METHODS:
        raise BadInput(f"the method must be one of {', '.join(METHODS)}, not {method!r}")
    if method == "linear" and options is not None:
        raise BadInput("the method linear takes no options; give its widths as config")
    if method != "linear" and config is not None:
        raise BadInput(f"config is for the method linear; give options to {method}")
    function: Callable[..., Result] = getattr(import_module("quant"), method)
    given: dict[str, Any] = {"config": config}
    if method != "linear":
        given = {"options": options_class(method)() if options is None else options}
        given |= {"seed": seed, "state": state}
    if method == "evolve":
        given["storage"] = storage
    return function(
        model.graph,
        preprocess=model.preprocess,
        splits=splits,
        name=model.name,
        progress=progress,
        **given,
    )


def options_class(method: str) -> Any:
    """The class of the options of a method that searches, such as :class:`quant.AdaptiveOptions`."""
    return getattr(import_module("quant"), f"{method.capitalize()}Options")


def make_options(method: str, given: Mapping[str, Any]) -> Any:
    """A method's options from what a user typed.

    Parameters
    ----------
    method : str
        One that searches.
    given : mapping of str to object
        Fields of its options; texts become members of enumerations.

    Raises
    ------
    BadInput
        If a value is not allowed.
    """
    cls = options_class(method)
    kinds = get_type_hints(cls)
    values = {name: _member(kinds[name], name, value) for name, value in given.items()}
    return cls(**values)


def _member(kind: Any, name: str, value: Any) -> Any:
    """``value`` as the type ``kind`` of a field wants it: a member of an enumeration, or an integer."""
    parts = [part for part in (kind, *get_args(kind)) if isinstance(part, type)]
    for part in parts:
        if issubclass(part, Enum) and isinstance(value, str):
            members = {str(member.value): member for member in part}
            if value not in members:
                raise BadInput(
                    f"the {name.replace('_', ' ')} must be one of {', '.join(members)}, not {value!r}"
                )
            return members[value]
    if isinstance(value, float) and int in parts and float not in parts:
        if not value.is_integer():
            raise BadInput(f"{name.replace('_', ' ')} must be a whole number, not {value}")
        return int(value)
    return value


def network_digest(folder: Path) -> str:
    """sha256 of a saved network's ``network.json``, which names the digest of its weights."""
    return hashlib.sha256((folder / "network.json").read_bytes()).hexdigest()


def saved_method(folder: Path) -> dict[str, Any] | None:
    """What ``method.json`` says of a saved network; None where there is none of this network."""
    try:
        found = json.loads((folder / METHOD_FILE).read_text(encoding="utf-8"))
        good = found["network"] == network_digest(folder)
        float(found["test"]["float"]), str(found["method"]), int(found["test"]["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if good else None


def result_table(result: Result) -> dict[str, Any]:
    """A result's figures as JSON values, with what the network costs; neither times nor paths."""
    return {**result.table(), "cost": network_cost(result.network).table()}


def result_rows(result: Result) -> list[tuple[str, ...]]:
    """A result as label, value on the search images, value on the test images; see :data:`SAVED`."""
    search, test = result.search, result.test

    def row(label: str, form: str, name: str) -> tuple[str, ...]:
        return label, form.format(getattr(search, name)), form.format(getattr(test, name))

    cost = network_cost(result.network)
    rows = [
        row("images", "{:,}", "images"),
        ("seen in training", "yes, or not known" if result.search_seen else "no", "no"),
        row("float", "{:.2%}", "exact"),
        row("integer", "{:.2%}", "integer"),
        ("drop, points", f"{100 * search.drop:.2f}", f"{100 * test.drop:.2f}"),
        row("drop, relative", "{:.2%}", "relative"),
        ("bits of constants", f"{cost.constants:,}"),
        ("memory saved against 8 bits", f"{cost.memory_saved:.1%}"),
        ("multiplication cost saved", f"{cost.input_product_saved:.1%}"),
        ("  with own output widths", f"{cost.output_product_saved:.1%}"),
    ]
    allowed = result.record.get("options", {}).get("max_drop")
    if allowed is not None:
        kept = (result.record.get("limit_met", True), result.record["test_limit_met"])
        told = (f"{allowed:.2%}, {'kept' if met else 'exceeded'}" for met in kept)
        rows.append(("drop allowed, relative", *told))
    rows += [
        (label, form.format(result.record[name]))
        for name, label, form in FIGURES
        if name in result.record
    ]
    return rows


def drop_note(result: Result) -> str | None:
    """That more is lost on the test images than was asked for, though the search images kept it.

    None where that is not so: the drop is kept, none was asked for, or :func:`limit_message` tells
    of one that was not reached at all.
    """
    record = result.record
    if record.get("test_limit_met", True) or limit_message(result) is not None:
        return None
    room = "smaller savings" if _aimed(record) else "a smaller tolerance"
    return (
        f"the network loses {result.test.relative:.2%} on the test images, more than the"
        f" {record['options']['max_drop']:.2%} that are allowed and that it keeps on the images it"
        f" was chosen for; the test images may not choose: {room}, or more search images, leave"
        " more room"
    )


def pruning_note(result: Result) -> str | None:
    """That pruning alone loses much, so that nothing after it can be better; None where it does not."""
    pruned, exact = result.record.get("pruned_search"), result.search.exact
    if pruned is None or exact - pruned <= PRUNING_LOSS:
        return None
    return (
        f"the pruned network has {pruned:.2%} on the search images in floats, before clustering, and"
        f" the network that was given {exact:.2%}; a smaller --sparsity loses less, and more --epochs"
        " or another --rate may"
    )


def _aimed(record: Mapping[str, Any]) -> bool:
    """Whether savings were asked for, so that no drop steered the search."""
    options = record.get("options", {})
    return any(options.get(f"{what}_saved") is not None for what in ("memory", "multiplications"))


def limit_message(result: Result) -> str | None:
    """What was asked for and not reached, and what binds; None where all was reached.

    Methods with a limit say so in their record: ``limit`` is a mapping with ``met``, or
    ``limit_met`` stands beside ``search_drop`` and ``binding``.
    """
    record = result.record
    limit = record.get("limit")
    if isinstance(limit, Mapping) and not limit.get("met", True):
        words = {"max_bits": "bits of constants at most"}
        told = [
            f"{words.get(key, key)} {value:,}" if isinstance(value, int) else f"{key} {value}"
            for key, value in limit.items()
            if key != "met" and value is not None
        ]
        return f"the limit is not met: {', '.join(told)}".replace("_", " ")
    if record.get("limit_met", True):
        return None
    other = record.get("confirmation", {}).get("drop", 0.0)
    more = f" ({other:.2%} on the images that confirm)" if other > record["search_drop"] else ""
    if _aimed(record):
        return (
            "the drop that is allowed is not met: that of the most accurate network found that saves"
            f" as much is {record['search_drop']:.2%} on the search images{more}, and what binds is"
            f" {record['binding']}"
        )
    return (
        "the drop that is allowed is not met: the least one reached on the search images that were"
        f" judged is {record['search_drop']:.2%}{more}, and what binds is {record['binding']}"
    )
