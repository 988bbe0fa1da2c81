"""The options of ``hwgen quantize`` that not every method has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwgen.cli import args

__all__ = ["FLAGS", "STUDY", "Flag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option of some methods.

    Parameters
    ----------
    name : str
        As it is typed.
    methods : tuple of str
    target : str
        The field of the methods' options.
    settings : mapping
        More for the parser.
    """

    name: str
    methods: tuple[str, ...]
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dest(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


def _flag(name: str, methods: str, *, to: str | None = None, **settings: Any) -> Flag:
    dest = name.lstrip("-").replace("-", "_")
    return Flag(name=name, methods=tuple(methods.split()), target=to or dest, settings=settings)


FLAGS: tuple[Flag, ...] = (
    _flag("--form", "adaptive", choices=("clip", "codebook"), help="what evolves; default clip"),
    _flag(
        "--control",
        "adaptive",
        choices=("linear", "mse", "lloyd", "random"),
        help="what the strategy is measured against, instead of it",
    ),
    _flag(
        "--mode",
        "layerwise",
        choices=("improved", "paper"),
        help="which search; default improved",
    ),
    _flag(
        "--max-drop",
        "layerwise",
        type=args.share,
        help="relative drop to stay within, below 1; default 0.01, which is 1 %%",
    ),
    _flag(
        "--tolerance",
        "layerwise",
        type=args.share,
        help="drop that the search allows itself on the search images, default 0.75 of --max-drop;"
        " with --mode paper its T, default 0.5 of it",
    ),
    _flag(
        "--multiplications",
        "layerwise",
        type=args.amount,
        help="what the cost of multiplications counts against memory, each as a fraction of 8 bits';"
        " default 0.8",
    ),
    _flag(
        "--memory-saved",
        "layerwise",
        type=args.share,
        metavar="SHARE",
        help="save at least this share of the memory at 8 bits, 0.5 being 50 %%, and lose as little"
        " accuracy as possible; then no tolerance steers the search",
    ),
    _flag(
        "--multiplications-saved",
        "layerwise",
        type=args.share,
        metavar="SHARE",
        help="the same for the cost of multiplications with the layers' own output widths; both may"
        " be given",
    ),
    _flag("--trials", "evolve", type=args.positive, help="candidates in all; default 32"),
    _flag("--population", "evolve", type=args.positive, help="of a generation; default 8"),
    _flag(
        "--sampler",
        "evolve",
        choices=("nsga2", "random", "uniform"),
        help="how candidates are chosen; default nsga2, the others are its controls",
    ),
    _flag(
        "--final-epochs",
        "evolve",
        type=args.amount,
        help="epochs of each round of the final choice, shared by those that are left; default 30",
    ),
    _flag(
        "--finalists",
        "evolve",
        type=args.positive,
        help="candidates that are trained for longer, fewer in every round, before one is chosen;"
        " default 6",
    ),
    _flag(
        "--final-rate",
        "evolve",
        type=args.above_zero,
        help="largest learning rate of their fine-tuning; default 0.004",
    ),
    _flag(
        "--ratio",
        "evolve",
        type=args.above_zero,
        help="how many times smaller than in float32 the network must be; default 6",
    ),
    _flag(
        "--sparsity",
        "cluster",
        type=args.share,
        help="share of weights to prune, below 1; default 0.8",
    ),
    _flag(
        "--scope",
        "cluster",
        choices=("layer", "adaptive"),
        help="among which weights; default adaptive",
    ),
    _flag(
        "--seeding",
        "cluster",
        choices=("pso", "random", "uniform", "k-means++", "exact", "none"),
        help="where K-means starts; default pso",
    ),
    _flag(
        "--codebook",
        "cluster",
        action="store_const",
        const=True,
        help="store the clusters as they are, as a codebook",
    ),
    _flag(
        "--no-refit",
        "cluster",
        to="refit",
        action="store_const",
        const=False,
        help="do not fit the clusters to the outputs of their layers",
    ),
    _flag(
        "--tune-epochs",
        "cluster",
        type=args.natural,
        help="of fine-tuning the clusters; default 2, more where training images are few",
    ),
    _flag(
        "--batch",
        "cluster",
        type=args.positive,
        help="training images in a step; default 128, fewer where training images are few",
    ),
    _flag(
        "--rate",
        "cluster",
        type=args.above_zero,
        help="largest learning rate while it prunes, a tenth of it for the clusters; default 0.004",
    ),
    _flag(
        "--accumulator-bits",
        "accumulator",
        to="bits",
        type=args.positive,
        help="width of every accumulator, 12 to 32; default 16",
    ),
    _flag(
        "--bound",
        "accumulator",
        choices=("formats", "weights", "calibrated"),
        help="how it is known that accumulators fit; default weights",
    ),
    _flag(
        "--scales",
        "accumulator",
        choices=("shift", "multiply"),
        help="of output channels: powers of two or real ones; default shift",
    ),
    _flag("--entry-bits", "adaptive cluster", type=args.positive, help="of a codebook; default 8"),
    _flag(
        "--activation-bits",
        "adaptive cluster",
        type=args.positive,
        help="of activations; default 8",
    ),
    _flag(
        "--evaluations",
        "adaptive accumulator",
        type=args.positive,
        help="networks to try, default 400; of accumulator about so many in each of its two searches,"
        " default 150",
    ),
    _flag(
        "--mirror",
        "evolve cluster accumulator",
        action="store_const",
        const=True,
        help="fine-tune on mirrored images too: right for photographs, wrong for digits",
    ),
    _flag(
        "--epochs",
        "evolve cluster accumulator",
        type=args.amount,
        help="of fine-tuning: evolve each candidate, default 2; cluster while it prunes, default 10,"
        " more where training images are few; accumulator in the end, default 0",
    ),
)
"""The options that not every method has; their defaults are those of the method."""

STUDY = Flag(
    name="--study",
    methods=("evolve",),
    target="",
    settings={
        "metavar": "URL",
        "help": "file or database URL of the study, default OUT.study.db; the same command in more"
        " processes or on more machines adds workers",
    },
)
"""Where the study of ``evolve`` lies: no option of the search itself."""
