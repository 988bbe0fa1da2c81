"""Clusters of a layer's weights: K-means in one dimension from different starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from sklearn.cluster import kmeans_plusplus

from hwgen.errors import BadInput
from quant.codebooks import Clusters, kmeans_exact, lloyd_max
from quant.formats import Floats

__all__ = ["Seeding", "Swarm", "clustered", "swarm_levels"]


class Seeding(Enum):
    """Where K-means starts."""

    PSO = "pso"
    """The best position that a particle swarm finds."""
    RANDOM = "random"
    """Values drawn without replacement."""
    UNIFORM = "uniform"
    """Evenly spaced over the values' range."""
    PLUSPLUS = "k-means++"
    """Values drawn in proportion to their squared distance (Arthur and Vassilvitskii 2007)."""
    EXACT = "exact"
    """Not at all: the clusters with the least sum of squares, by dynamic programming."""
    NONE = "none"
    """No clusters: every weight goes to the integer grid by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """Parameters of the particle swarm: a ring of neighbours (Kennedy and Mendes 2002), constricted
    (Clerc and Kennedy 2002).

    Parameters
    ----------
    particles, rounds : int
        At least 3 and 0.
    inertia, own, common : float
        Weights of a particle's velocity and of the pulls towards its own best position and the
        best of it and its two neighbours.

    Raises
    ------
    BadInput
        If there are too few.
    """

    particles: int = 30
    rounds: int = 300
    inertia: float = 0.7298
    own: float = 1.49618
    common: float = 1.49618

    def __post_init__(self) -> None:
        if self.particles < 3 or self.rounds < 0:
            raise BadInput(
                "a swarm must have at least 3 particles and 0 rounds, not"
                f" {self.particles} and {self.rounds}"
            )


class _Squares:
    """Within-cluster sums of squares for many sets of levels at once."""

    def __init__(self, values: Floats) -> None:
        self._values = np.sort(values.reshape(-1))
        self._first = np.concatenate([[0.0], np.cumsum(self._values)])
        self._total = float(np.vdot(self._values, self._values))

    def __call__(self, levels: Floats) -> Floats:
        """Sums ``(particles,)`` of the distances to the nearest of rising ``(particles, k)``."""
        middle = (levels[:, 1:] + levels[:, :-1]) / 2
        cuts = np.searchsorted(self._values, middle)
        size = len(self._values)
        cuts = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, size)))
        count, total = np.diff(cuts), np.diff(self._first[cuts])
        found: Floats = self._total + (levels * (levels * count - 2 * total)).sum(1)
        return found


def swarm_levels(
    values: Floats, count: int, generator: np.random.Generator, swarm: Swarm | None = None
) -> Floats:
    """The levels with the least within-cluster sum of squares that a swarm finds.

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    count : int
        Levels.
    generator : numpy.random.Generator
    swarm : Swarm, optional

    Returns
    -------
    float64 array
        ``(count,)``, rising.
    """
    swarm = swarm or Swarm()
    squares = _Squares(values)
    low, high = float(values.min()), float(values.max())
    # A particle's coordinates stay sorted: the order of levels has no meaning.
    place = np.sort(generator.uniform(low, high, (swarm.particles, count)), axis=1)
    velocity = generator.uniform(low - high, high - low, place.shape) / count
    around = (np.arange(swarm.particles)[:, None] + [0, -1, 1]) % swarm.particles
    best, least = place.copy(), squares(place)
    for _ in range(swarm.rounds):
        leader = best[around[np.arange(swarm.particles), least[around].argmin(1)]]
        pulls = generator.random((2, *place.shape))
        velocity *= swarm.inertia
        velocity += swarm.own * pulls[0] * (best - place) + swarm.common * pulls[1] * (
            leader - place
        )
        place = np.sort(np.clip(place + velocity, low, high), axis=1)
        found = squares(place)
        better = found < least
        best[better], least[better] = place[better], found[better]
    result: Floats = best[least.argmin()]
    return result


def clustered(
    values: Floats,
    count: int,
    seeding: Seeding,
    generator: np.random.Generator,
    swarm: Swarm | None = None,
) -> Clusters:
    """At most ``count`` clusters of values by K-means.

    Parameters
    ----------
    values : float64 array
        ``(n,)``, at least one entry.
    count : int
        At least 1. With no more distinct values each is a cluster.
    seeding : Seeding
    generator : numpy.random.Generator
    swarm : Swarm, optional

    Returns
    -------
    Clusters
        Its ``error`` is the within-cluster sum of squares.
    """
    distinct = np.unique(values)
    if seeding is Seeding.EXACT or len(distinct) <= count:
        return kmeans_exact(values, count)
    if seeding is Seeding.PSO:
        start = swarm_levels(values, count, generator, swarm)
    elif seeding is Seeding.RANDOM:
        start = generator.choice(distinct, count, replace=False)
    elif seeding is Seeding.UNIFORM:
        start = np.linspace(distinct[0], distinct[-1], count)
    else:
        state = int(generator.integers(2**31))
        start, _ = kmeans_plusplus(values[:, None], count, random_state=state)
        start = start[:, 0]
    return lloyd_max(values, start)
