"""Prune, cluster, quantise: starts of K-means against exact clusters and plain clipping."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cells.cluster_report import report
from benchmarks.cells.common import Case, Cases, Cell
from hwgen.files import write_bytes
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.config import QuantConfig
from quant.graph import FloatGraph
from quant.methods.cluster import ClusterOptions, Seeding, cluster, prune
from quant.methods.result import compare

__all__ = ["VERSION", "cells", "report"]

VERSION = 1
"""Of the method: raise it when its results change, so that all cells are measured again."""

TUNED_CODEBOOKS = {"tuned codebooks": 2}
"""In the configuration of cells that fine-tune codebooks: raised when only their results change."""

FITTED_CODEBOOKS = {"tuned codebooks": 3}
"""The same with the fit."""

PRUNING: Mapping[str, ClusterOptions] = {
    "lenet5-cifar10": ClusterOptions(mirror=True, epochs=10, rate=4e-3, batch=128),
    # A step of this network takes twenty times as long: few epochs of some images.
    "resnet8-cifar10": ClusterOptions(mirror=True, epochs=10, rate=2e-3, images=15_000, batch=64),
    "lenet5-digits": ClusterOptions(epochs=8, rate=1e-2, batch=32),
    "digits-tiny": ClusterOptions(epochs=8, rate=1e-2, batch=32),
}
"""How each network is pruned: to 80 %, once, for all of its cells."""

SEEDS = (0, 1, 2)
CHANCE = (Seeding.PSO, Seeding.RANDOM, Seeding.PLUSPLUS)
"""Starts that depend on the seed."""


def cells(quick: bool) -> list[Cell]:
    """The pruned networks, then each quantiser of them."""
    found = []
    for network in (
        ("lenet5-digits", "digits-tiny") if quick else ("lenet5-cifar10", "resnet8-cifar10")
    ):
        base = PRUNING[network]
        found.append(
            Cell(
                name=f"cluster-{network}-pruned",
                run=partial(_pruned, network=network),
                config={"options": base.pruning()},
            )
        )
        few = quick or network == "resnet8-cifar10"
        for options, seed in _variants(base, few=few):
            tuned = FITTED_CODEBOOKS if options.refit else TUNED_CODEBOOKS
            found.append(
                Cell(
                    name=f"cluster-{network}-{_label(options)}-s{seed}",
                    run=partial(_cluster, network=network, options=options, seed=seed),
                    config={
                        "options": _settings(options),
                        "seed": seed,
                        **(tuned if options.codebook and options.tune_epochs else {}),
                    },
                )
            )
    return found


def _variants(base: ClusterOptions, *, few: bool) -> Iterator[tuple[ClusterOptions, int]]:
    """Options and seeds: all starts without tuning, then some with; ``few`` leaves out some."""
    fitted = _fitted(base, few=few)
    base = replace(base, refit=False)
    plain = replace(base, tune_epochs=0)
    for bits in (5, 4):
        for seeding in (*_MAIN, Seeding.PLUSPLUS, Seeding.NONE) if few else Seeding:
            options = replace(plain, bits=bits, seeding=seeding)
            seeds = SEEDS if seeding in CHANCE and not few else SEEDS[:1]
            yield from ((options, seed) for seed in seeds)
    for bits in (4,) if few else (5, 4):
        for seeding in _MAIN:
            options = replace(plain, bits=bits, codebook=True, seeding=seeding)
            seeds = SEEDS if seeding in CHANCE and not few else SEEDS[:1]
            yield from ((options, seed) for seed in seeds)
    tuned = replace(base, tune_epochs=1 if few else 2)
    yield replace(tuned, bits=5), 0
    yield replace(tuned, bits=4), 0
    if not few:
        yield replace(tuned, bits=4, seeding=Seeding.EXACT), 0
        yield replace(tuned, bits=5, seeding=Seeding.EXACT), 0
        yield replace(tuned, bits=4, seeding=Seeding.NONE), 0
        yield replace(tuned, bits=4, codebook=True), 0
        yield replace(tuned, bits=3), 0
        yield replace(tuned, bits=3, codebook=True), 0
    yield from fitted


def _fitted(base: ClusterOptions, *, few: bool) -> Iterator[tuple[ClusterOptions, int]]:
    """Those whose clusters are fitted to the outputs of their layers."""
    plain = replace(base, tune_epochs=0)
    others = (Seeding.EXACT,) if few else (Seeding.EXACT, Seeding.PLUSPLUS, Seeding.NONE)
    for bits in (5, 4):
        for seeding in (Seeding.PSO, *others):
            options = replace(plain, bits=bits, seeding=seeding)
            seeds = SEEDS if seeding in CHANCE and not few else SEEDS[:1]
            yield from ((options, seed) for seed in seeds)
        for seeding in () if few else _MAIN:
            options = replace(plain, bits=bits, seeding=seeding, codebook=True)
            yield from ((options, seed) for seed in (SEEDS if seeding in CHANCE else SEEDS[:1]))
    tuned = replace(base, bits=4, tune_epochs=1 if few else 2)
    yield tuned, 0
    if not few:
        yield replace(tuned, seeding=Seeding.EXACT), 0
        yield replace(tuned, codebook=True), 0
        yield replace(tuned, bits=3), 0


def _settings(options: ClusterOptions) -> dict[str, Any]:
    """The options as JSON values; without the fit as they were before there was one."""
    found = options.record()
    if not options.refit:
        del found["refit"]
    return found


_MAIN = (Seeding.PSO, Seeding.EXACT)


def _label(options: ClusterOptions) -> str:
    parts = [f"b{options.bits}", "codebook" if options.codebook else "linear"]
    parts.append(options.seeding.value.replace("+", "p"))
    parts += ["refit"] if options.refit else []
    parts += [f"tuned{options.tune_epochs}"] if options.tune_epochs else []
    parts += ["p2"] if options.power_of_two else []
    return "-".join(parts)


def _sparse(cases: Cases, network: str) -> tuple[Case, FloatGraph]:
    """A network and what pruning made of it, kept for the other cells."""
    case, options = cases.case(network), PRUNING[network]
    identity = [network, cases.digest(network), case.splits.digest(), options.pruning()]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = cases.scratch(f"cluster/{network}-{key}.npz")
    whole = with_preprocessing(case.graph, case.preprocess)
    if not path.is_file():
        state = path.with_suffix(".state")
        sparse = prune(
            case.graph,
            preprocess=case.preprocess,
            splits=case.splits,
            options=options,
            progress=cases.progress,
            state=state,
        )
        arrays = {f"{n.name}.weight": n.weight for n in sparse.mac_nodes}
        arrays |= {f"{n.name}.bias": n.bias for n in sparse.mac_nodes}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_bytes(path, buffer.getvalue())
        state.unlink(missing_ok=True)
    with np.load(path, allow_pickle=False) as file:
        changed = {
            node.name: replace(
                node, weight=file[f"{node.name}.weight"], bias=file[f"{node.name}.bias"]
            )
            for node in whole.mac_nodes
        }
    nodes = tuple(changed.get(node.name, node) for node in whole.nodes)
    return case, replace(whole, nodes=nodes)


def _pruned(cases: Cases, *, network: str) -> dict[str, Any]:
    """The pruned network in floats and at 8 bits, as the baseline quantises it."""
    case, sparse = _sparse(cases, network)
    assembler = Assembler(sparse)
    plan = linear_plan(
        assembler, observe_graph(sparse, case.splits.search_images[:500]), QuantConfig()
    )
    eight = compare("linear", sparse, assembler.assemble(plan, network), case.splits, {})
    layers = {
        node.name: {"weights": node.weight.size, "zero": int((node.weight == 0).sum())}
        for node in sparse.mac_nodes
    }
    return {"network": network, "layers": layers, **eight.table()}


def _cluster(cases: Cases, *, network: str, options: ClusterOptions, seed: int) -> dict[str, Any]:
    case, sparse = _sparse(cases, network)
    result = cluster(
        case.graph,
        preprocess=case.preprocess,
        splits=case.splits,
        options=options,
        seed=seed,
        name=network,
        pruned=sparse,
        progress=cases.progress,
    )
    return {"network": network, **cases.keep(result)}
