"""Time of the judge's evaluations against float32 forward passes of PyTorch.

LeNet-5 on CIFAR-10 images; both on the same number of threads, PyTorch at its best batch size. All
is measured in turn, round by round, and the best round counts, as other processes only ever slow a
round down. Each target is told as met or missed; exits with status 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hwgen.errors import HwgenError
from hwgen.ir import MacOp, Network
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.checkpoints import load_checkpoint, load_model, shipped_checkpoint
from quant.config import LayerBits, QuantConfig
from quant.datasets import load_dataset
from quant.importers import import_torch
from quant.judge import Judge
from quant.judge_cpu import usable_threads
from quant.plan import Plan

FULL, LAYERWISE = 1.5, 0.7
"""Most forward passes that a full evaluation, and one of a layer-wise search, may take."""

LATER = 1.5
"""Most that the time from a layer on may exceed its share of the multiplications, ..."""

FIXED = 0.03
"""... besides a share of a full evaluation that everything takes."""

BATCHES = (64, 128, 256, 500)
"""Batch sizes that PyTorch may choose from."""

Images = NDArray[np.uint8]


class Bench:
    """LeNet-5 and what is timed on it.

    Parameters
    ----------
    images : uint8 array
        ``(N, 3, 32, 32)``.
    labels : int64 array
    threads : int
    clock : callable
        Seconds.
    """

    def __init__(
        self, images: Images, labels: NDArray[np.int64], threads: int, clock: Callable[[], float]
    ) -> None:
        checkpoint = load_checkpoint(shipped_checkpoint("lenet5", "cifar10"))
        self.images, self.labels, self.threads, self.clock = images, labels, threads, clock
        self.model = load_model(checkpoint)
        self.inputs = checkpoint.preprocess.apply(images)
        graph = import_torch(self.model, images.shape[1:])
        self.assembler = Assembler(with_preprocessing(graph, checkpoint.preprocess))
        self.seen = observe_graph(self.assembler.graph, images[:250])
        self.plan = linear_plan(self.assembler, self.seen, QuantConfig())
        self._count = 0

    def seconds(self, run: Callable[[], object]) -> float:
        """Time of one call."""
        start = self.clock()
        run()
        return self.clock() - start

    def judge(self) -> Judge:
        """A fresh judge."""
        return Judge(self.images, self.labels, threads=self.threads)

    def score(self, judge: Judge, plan: Plan) -> None:
        """Assemble and judge."""
        judge.score(self.assembler.assemble(plan))

    def forward(self, batch: int) -> None:
        """One forward pass of the float network over all images."""
        with torch.inference_mode():
            for start in range(0, len(self.inputs), batch):
                self.model(self.inputs[start : start + batch])

    def changed(self, layer: str) -> Plan:
        """The plan with one other weight of a layer, never the same twice."""
        self._count += 1
        old = self.plan.layer(layer)
        codes = old.codes.copy()
        codes.flat[self._count % codes.size] = self._count % 100 - 50
        return self.plan.with_layers(**{layer: replace(old, codes=codes)})

    def layer_wise(self) -> tuple[int, Judge]:
        """A search: each layer in turn tries narrower weights, then narrower outputs; the narrowest
        that loses less than half a point in all stays. The evaluations, and their judge."""
        judge, plan = self.judge(), self.plan
        least = judge.score(self.assembler.assemble(plan)).correct - len(self.images) // 200
        count = 1

        def narrowest(trials: list[Plan], best: Plan) -> Plan:
            nonlocal count
            for trial in trials:
                count += 1
                if judge.score(self.assembler.assemble(trial)).correct >= least:
                    best = trial
            return best

        for group in self.assembler.makers:
            name = group.node.name
            plan = narrowest([self._weights(plan, name, bits) for bits in (7, 6, 5, 4)], plan)
            if name in plan.outputs:
                form = plan.outputs[name]
                forms = [
                    replace(form, width=form.width - cut, frac=form.frac - cut) for cut in (1, 2, 3)
                ]
                plan = narrowest([plan.with_outputs({name: form}) for form in forms], plan)
        return count, judge

    def _weights(self, plan: Plan, name: str, bits: int) -> Plan:
        config = QuantConfig(layers={name: LayerBits(weights=bits)})
        return plan.with_layers(
            **{name: linear_plan(self.assembler, self.seen, config).layer(name)}
        )


def share(network: Network, layer: str) -> float:
    """Multiplications from a layer on, as a fraction of all."""
    macs = [(op.name, op.macs) for op in network.ops if isinstance(op, MacOp)]
    start = [name for name, _ in macs].index(layer)
    return sum(m for _, m in macs[start:]) / sum(m for _, m in macs)


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Best times of everything, in seconds, and what they are to each other."""
    network = bench.assembler.assemble(bench.plan)
    layers = [op.name for op in network.ops if isinstance(op, MacOp)]
    kept = bench.judge()  # two networks that differ in a layer show it where to start
    for layer in (layers[0], *layers):
        kept.score(bench.assembler.assemble(bench.changed(layer)))
    times: dict[str, list[float]] = {}
    count, work = 0, 0.0

    def add(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)

    for _ in range(rounds):
        for batch in BATCHES:
            add("forward", bench.seconds(partial(bench.forward, batch)))
        add("full", bench.seconds(partial(bench.judge().score, network)))
        for layer in layers:
            assemble = partial(bench.assembler.assemble, bench.changed(layer))
            add(f"assemble {layer}", bench.seconds(assemble))
            add(layer, bench.seconds(partial(bench.score, kept, bench.changed(layer))))
        start = bench.clock()
        count, judge = bench.layer_wise()
        add("layerwise", (bench.clock() - start) / count)
        work = judge.work
    best = {name: min(values) for name, values in times.items()}
    forward, full = best["forward"], best["full"]
    return {
        "images": len(bench.images),
        "threads": bench.threads,
        "forward_s": forward,
        "full_s": full,
        "full_ratio": full / forward,
        "layers": {
            layer: {
                "seconds": best[layer],
                "assemble_s": best[f"assemble {layer}"],
                "time_ratio": best[layer] / full,
                "mac_ratio": share(network, layer),
            }
            for layer in layers
        },
        "layerwise_ratio": best["layerwise"] / forward,
        "layerwise_evaluations": count,
        "layerwise_work": work,
    }


def verdicts(found: dict[str, Any]) -> list[tuple[str, bool]]:
    """What is asked of the judge, with what was measured, and whether it is met."""
    full, layerwise = found["full_ratio"], found["layerwise_ratio"]
    out = [
        (f"a full evaluation: {full:.2f} forward passes, at most {FULL}", full <= FULL),
        (
            f"a layer-wise search: {layerwise:.2f} forward passes an evaluation, at most {LAYERWISE}",
            layerwise <= LAYERWISE,
        ),
    ]
    for layer, row in list(found["layers"].items())[1:]:
        most = LATER * row["mac_ratio"] + FIXED
        text = (
            f"{layer} changed: {row['time_ratio']:.3f} of a full evaluation's time for"
            f" {row['mac_ratio']:.3f} of its multiplications, at most {most:.3f}"
        )
        out.append((text, row["time_ratio"] <= most))
    return out


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    forward = found["forward_s"]
    table = Table(
        title=f"LeNet-5, {found['images']} images, {found['threads']} thread(s);"
        f" a forward pass takes {forward * 1e3:.0f} ms"
    )
    for title in ("evaluation", "ms", "forward passes", "of a full one", "of its MACs"):
        table.add_column(title, justify="left" if title == "evaluation" else "right")
    full = found["full_s"]
    table.add_row("all", f"{full * 1e3:.1f}", f"{full / forward:.3f}", "1.000", "1.000")
    for layer, row in found["layers"].items():
        seconds = row["seconds"]
        table.add_row(
            f"{layer} changed",
            *(f"{seconds * 1e3:.1f}", f"{seconds / forward:.3f}"),
            *(f"{row['time_ratio']:.3f}", f"{row['mac_ratio']:.3f}"),
        )
    table.add_row(
        f"layer-wise search, mean of {found['layerwise_evaluations']}",
        f"{found['layerwise_ratio'] * forward * 1e3:.1f}",
        f"{found['layerwise_ratio']:.3f}",
        f"{found['layerwise_ratio'] * forward / full:.3f}",
        f"{found['layerwise_work']:.3f}",
    )
    console.print(table)


def main() -> int:
    """Measure, print, and say what misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the best counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time the processor, not the wall (1 thread only)"
    )
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time needs --threads 1: waiting threads take processor time too")
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    try:
        data = load_dataset("cifar10", data_dir=options.data_dir)
        images, labels = data.test_images[: options.images], data.test_labels[: options.images]
        found = measure(Bench(images, labels, options.threads, clock), options.rounds)
    except HwgenError as error:
        print(error, file=sys.stderr)
        return 2
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    results = verdicts(found)
    for text, met in results:
        print(f"{'met' if met else 'missed'}: {text}")
    return 0 if all(met for _, met in results) else 1


if __name__ == "__main__":
    sys.exit(main())
