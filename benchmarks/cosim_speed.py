"""Cycles and images per second of co-simulation in Verilator: LeNet-5 on 32x32x3 images, 8 bits.

Uses the shipped CIFAR-10 checkpoint, with CIFAR-10 test images where ``--data-dir`` has them and
random pixels otherwise; the number of cycles is the same. Every output is compared with golden. The
rate counts from the simulator's start to its end and leaves out the build, which is given apart.
Exits with status 1 where an output differs or a rate is below what is required.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.backends.rtl import generate
from hwgen.ir import Network
from hwgen.lower.sizing import lower_to_multipliers
from quant.baseline import quantize_linear
from quant.checkpoints import load_checkpoint, load_model, shipped_checkpoint
from quant.datasets import load_dataset
from quant.importers import fold, import_torch
from sim.simulate import Conditions, Mode, SimResult, simulate
from sim.tools import Simulator

CYCLES_PER_SECOND = {64: 100_000}
"""Least rate of simulation by number of multipliers."""

IMAGES_PER_SECOND = {128: 10.0}
"""Least rate of images by number of multipliers."""


def pixels(data_dir: Path | None, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images to calibrate with and images to simulate, ``(N, 3, 32, 32)`` each."""
    if data_dir is not None:
        data = load_dataset("cifar10", data_dir=data_dir, download=False)
        return data.search_images[:500], data.test_images[:count]
    rng = np.random.default_rng(0)
    shape = (3, 32, 32)
    calibration = rng.integers(0, 256, (100, *shape), dtype=np.uint8)
    return calibration, rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def integer_network(calibration: NDArray[np.uint8]) -> Network:
    """The shipped LeNet-5 at 8 bits."""
    checkpoint = load_checkpoint(shipped_checkpoint("lenet5", "cifar10"))
    graph = fold(import_torch(load_model(checkpoint), (3, 32, 32)))
    return quantize_linear(
        graph, preprocess=checkpoint.preprocess, calibration=calibration, name="lenet5"
    )


def show(multipliers: int, result: SimResult, images: int) -> tuple[float, float]:
    """Print a line; return cycles and images per second."""
    cycles, rate = result.cycles / result.seconds, images / result.seconds
    print(
        f"{multipliers:4d} multipliers  {result.simulator.value:9s}  {result.conditions.mode.value:4s}"
        f"  {images:4d} images  {result.mismatches} wrong  {result.cycles:9,d} cycles"
        f"  {cycles:9,.0f} cycles/s  {rate:6.2f} images/s  build {result.build_seconds:5.1f} s"
    )
    for problem in result.problems:
        print(f"     {problem}")
    return cycles, rate


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar-10-batches-bin/")
    parser.add_argument("--images", type=int, default=50, help="for the lean driver; default 50")
    parser.add_argument("--multipliers", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--cache-dir", type=Path, help="folder of the build cache")
    parser.add_argument("--icarus", action="store_true", help="also one image in Icarus")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    calibration, images = pixels(arguments.data_dir, arguments.images)
    network = integer_network(calibration)
    codes = images.astype(np.int64)
    good = True
    for multipliers in arguments.multipliers:
        dataflow = lower_to_multipliers(network, multipliers=multipliers)
        design, expected = generate(dataflow), dataflow.expected(codes)
        runs = [(Simulator.VERILATOR, Mode.LEAN, len(codes)), (Simulator.VERILATOR, Mode.AXI, 3)]
        if arguments.icarus:
            runs.append((Simulator.ICARUS, Mode.LEAN, 1))
        for simulator, mode, count in runs:
            result = simulate(
                design,
                codes[:count],
                expected[:count],
                simulator=simulator,
                conditions=Conditions(mode=mode),
                cache_dir=arguments.cache_dir,
            )
            cycles, rate = show(multipliers, result, min(count, len(codes)))
            good &= result.ok
            if mode is Mode.LEAN and simulator is Simulator.VERILATOR:
                good &= result.interval in (None, dataflow.interval)
                good &= result.latency == dataflow.latency
                good &= cycles >= CYCLES_PER_SECOND.get(multipliers, 0)
                good &= rate >= IMAGES_PER_SECOND.get(multipliers, 0)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
