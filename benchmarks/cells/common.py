"""What the cells of a benchmark are made of, and the networks and images that they ask for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hwgen.errors import BadInput
from hwgen.files import ensure_folder, write_json
from hwgen.flow.methods import METHOD_FILE, network_digest, result_table
from hwgen.flow.model import load_model
from hwgen.flow.workspace import digest
from hwgen.ir.serial import save_network
from quant.checkpoints import shipped_checkpoint
from quant.checks import check_whole
from quant.data.dataset import Dataset
from quant.datasets import load_dataset
from quant.graph import FloatGraph
from quant.methods.result import Result
from quant.models import Preprocess
from quant.progress import Progress, Silent
from quant.splits import Splits

__all__ = [
    "NETWORKS",
    "Absent",
    "Case",
    "Cases",
    "Cell",
    "cells_of",
    "markdown_table",
    "percent",
    "points",
]

KEPT_FILE = "cell.json"
"""Which cell a kept network is of."""


class Absent(BadInput):
    """A network has no file here: cells that need it are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement of a benchmark.

    Parameters
    ----------
    name : str
        Unique, begins with the method's name; letters, digits, ``-``, ``_`` and ``.``.
    run : callable
        Measures, and gives JSON values without NaN that are the same in every run.
    config : mapping
        JSON values that decide the result besides the name: options, seeds, the widths. A result
        of another configuration is measured again.
    version : int
        ``VERSION`` of the module that makes the cell: raised whenever the results of the method's
        code change, so that older ones are measured again.
    """

    name: str
    run: Callable[[Cases], dict[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise BadInput(f"a cell's name must be a plain file name, not {self.name!r}")
        check_whole("a cell's version", self.version, 1)


def cells_of(name: str, quick: bool) -> tuple[Cell, ...]:
    """The cells of a module of this package, with the version of its method."""
    module = import_module(f"benchmarks.cells.{name}")
    version = getattr(module, "VERSION", 1)
    return tuple(replace(cell, version=version) for cell in module.cells(quick))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A network and its images.

    Parameters
    ----------
    name : str
        One of :data:`NETWORKS`.
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
    seen : bool
        Whether the network saw the search images in training, as far as is known.
    """

    name: str
    graph: FloatGraph = field(repr=False)
    preprocess: Preprocess
    splits: Splits = field(repr=False)
    seen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """Where a network comes from: a reference file, a shipped network, or both."""

    data: str
    file: str | None = None
    shipped: str | None = None
    preprocess: str | None = None


NETWORKS: Mapping[str, _Network] = {
    "lenet5-cifar10": _Network(data="cifar10", file="lenet5_cifar10.pt", shipped="lenet5"),
    "lenet5-own-cifar10": _Network(data="cifar10", shipped="lenet5"),
    "lenet5-mnist": _Network(data="mnist", file="lenet5_mnist.pt", shipped="lenet5"),
    "resnet8-cifar10": _Network(data="cifar10", file="resnet8_cifar10.onnx"),
    "allcnn-cifar10": _Network(data="cifar10", file="allcnn_cifar10.safetensors"),
    "goyal-mnist": _Network(data="mnist", file="goyal-seq-mnist.onnx", preprocess="unit"),
    "goyal-cifar10": _Network(data="cifar10", file="goyal-seq-cifar10.onnx", preprocess="unit"),
    "lenet5-digits": _Network(data="digits", shipped="lenet5"),
    "digits-tiny": _Network(data="digits", shipped="digits-tiny"),
}
"""The networks of the benchmarks."""


class Cases:
    """The networks and images of a benchmark, loaded when they are first asked for.

    Parameters
    ----------
    work : Path
        Folder for what cells share and for unfinished searches.
    data_dirs : mapping of str to Path
        Folders of the data sets' files by the name of the data set; see
        :func:`quant.datasets.load_dataset`.
    models : Path, optional
        Folder of the reference networks. Without it LeNet-5 has the shipped weights, and the other
        networks are not there.
    quick : bool
        Whether this is the short form.
    progress : Progress, optional
        What searches in cells may report to.
    """

    def __init__(
        self,
        work: Path,
        *,
        data_dirs: Mapping[str, Path] | None = None,
        models: Path | None = None,
        quick: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.work, self.models, self.quick = work, models, quick
        self.progress: Progress = progress or Silent()
        self.used: dict[str, str] = {}
        self._running: Cell | None = None
        self._data_dirs = dict(data_dirs or {})
        self._data: dict[str, Dataset] = {}
        self._cases: dict[tuple[str, int | None], Case] = {}

    def begin(self, cell: Cell) -> None:
        """From now on a cell runs: what it asks for, and keeps, is its own."""
        self._running = cell
        self.used = {}

    def keep(self, result: Result) -> dict[str, Any]:
        """Save the network that the running cell made, for other cells and for ``hwgen build``.

        Returns
        -------
        dict
            The result's table.
        """
        assert self._running is not None
        folder = ensure_folder(self._kept(self._running))
        save_network(result.network, folder)
        method = {"network": network_digest(folder), **result_table(result)}
        write_json(folder / METHOD_FILE, method)
        write_json(folder / KEPT_FILE, {"cell": self._key(self._running), "networks": self.used})
        return result.table()

    def made(self, cell: Cell) -> Path:
        """Folder of the network that a cell keeps; the cell runs where there is none of its own.

        Raises
        ------
        Absent
            If its network has no file here.
        """
        folder = self._kept(cell)
        used = self._made_of(cell)
        if used is None:
            outer, mine = self._running, self.used
            self.begin(cell)
            try:
                cell.run(self)
                used = self.used
            finally:
                self._running, self.used = outer, mine
            assert self._made_of(cell) == used, f"{cell.name} keeps no network"
        self.used |= used
        return folder

    def _kept(self, cell: Cell) -> Path:
        return self.work / "networks" / cell.name

    def _key(self, cell: Cell) -> str:
        return digest(cell.name, dict(cell.config), cell.version, self.quick)

    def _made_of(self, cell: Cell) -> dict[str, str] | None:
        """The networks that a cell's kept one was made of; None where it is of another
        configuration or of other networks."""
        folder = self._kept(cell)
        try:
            record = json.loads((folder / KEPT_FILE).read_text(encoding="utf-8"))
            method = json.loads((folder / METHOD_FILE).read_text(encoding="utf-8"))
            same = record["cell"] == self._key(cell) and method["network"] == network_digest(folder)
            used: dict[str, str] = record["networks"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return used if same and all(self.digest(n) == sha for n, sha in used.items()) else None

    def case(self, name: str, search: int | None = None) -> Case:
        """A network with its images.

        Parameters
        ----------
        name : str
            One of :data:`NETWORKS`.
        search : int, optional
            Search images to use, the first ones; all held-out images by default.

        Raises
        ------
        Absent
            If its file is not there.
        BadInput, BadDataset
            If there is no such network, or its images are not there.
        """
        self.used[name] = self.digest(name)
        key = (name, search)
        if key not in self._cases:
            network = NETWORKS[name]
            data = self.dataset(network.data)
            path = self._file(name)
            model = load_model(path, data=data, preprocess=network.preprocess)
            splits = Splits.of(
                data, held_out=model.held_out, search=search, size=self._size(model.graph)
            )
            self._cases[key] = Case(
                name=name,
                graph=model.graph,
                preprocess=model.preprocess,
                splits=splits,
                seen=splits.search_seen,
            )
        return self._cases[key]

    def digest(self, name: str) -> str:
        """sha256 of a network's file.

        Raises
        ------
        Absent
            If its file is not there.
        BadInput
            If there is no such network.
        """
        return hashlib.sha256(self._file(name).read_bytes()).hexdigest()

    def origin(self, digest: str) -> str:
        """Where the file of a network with such a sha256 comes from, in words."""
        for network in NETWORKS.values():
            if network.shipped is not None:
                path = shipped_checkpoint(network.shipped, network.data)
                if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                    return f"shipped, `{path.name}`"
        return "given by `--models`"

    def scratch(self, name: str) -> Path:
        """A path below :attr:`work` for a file of a search or one that cells share.

        Its folder is there; the file is as the last run left it, if it did.
        """
        path = self.work / name
        ensure_folder(path.parent)
        return path

    def state(self, cell: str, *config: object, suffix: str = ".npz") -> Path:
        """The file of a cell's unfinished search, or of its study.

        Its name depends on the configuration, the method's version among it, and on the networks
        that the cell has asked for: a search of another one begins anew instead of being refused.
        """
        key = digest(sorted(self.used.items()), *config)[:12]
        return self.scratch(f"{cell}-{key}{suffix}")

    def dataset(self, name: str) -> Dataset:
        """A data set by its name, read once."""
        if name not in self._data:
            self._data[name] = load_dataset(name, data_dir=self._data_dirs.get(name))
        return self._data[name]

    def _file(self, name: str) -> Path:
        if name not in NETWORKS:
            raise BadInput(f"the network must be one of {', '.join(NETWORKS)}, not {name!r}")
        network = NETWORKS[name]
        if network.file is not None and self.models is not None:
            path = self.models / network.file
            if not path.is_file():
                raise Absent(f"--models {self.models} holds no {network.file}; put it there")
            return path
        if network.shipped is None:
            raise Absent(
                f"no weights ship for {name}; give --models FOLDER with {network.file} in it"
            )
        return shipped_checkpoint(network.shipped, network.data)

    @staticmethod
    def _size(graph: FloatGraph) -> tuple[int, int]:
        _, rows, columns = graph.input_shape
        return rows, columns


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as percent; a dash where there is none.

    >>> percent(0.73456)
    '73.46%'
    """
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None, digits: int = 2) -> str:
    """A difference of fractions in percentage points; a dash where there is none.

    >>> points(0.0123)
    '1.23'
    """
    return "-" if value is None else f"{100 * value:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right.

    >>> print(markdown_table(("a", "b"), [("x", 1)]))
    | a | b |
    | --- | ---: |
    | x | 1 |
    """
    rules = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rules, *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
