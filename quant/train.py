"""Training of the float networks, deterministic by seed and resumable after every epoch."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from hwgen.errors import BadInput, BadNetwork
from hwgen.files import ensure_folder, write_bytes
from quant.checkpoints import SCHEMA, Checkpoint, read_tensors, save_checkpoint, tensor_bytes
from quant.data.dataset import Dataset
from quant.models import Preprocess, create_model
from quant.recipe import Augmenter, Recipe, learning_rate, recipe_for
from quant.state import differences

__all__ = ["evaluate", "resume_path", "train"]


def resume_path(out: Path) -> Path:
    """Return the file that holds the state of an unfinished run beside its checkpoint."""
    return out.with_name(f"{out.name}.resume")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise BadInput(f"the number of threads must be at least 1, and is {count}")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    preprocess: Preprocess,
    *,
    batch: int = 500,
) -> float:
    """Return the top-1 accuracy as a fraction; the lowest class wins a tie.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, C, H, W)
        Raw pixels; at least one image.
    labels : ndarray of int64, shape (N,)
    batch : int
        Images at a time.
    """
    if not len(images) or len(images) != len(labels):
        raise BadInput(
            f"there must be as many labels as images, and at least one: {len(images)} images, "
            f"{len(labels)} labels"
        )
    was_training = model.training
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            logits = model(preprocess.apply(images[start : start + batch])).numpy()
            right += int((logits.argmax(axis=1) == labels[start : start + batch]).sum())
    model.train(was_training)
    return right / len(images)


class _Run:
    """A training run: network, optimiser and how far it is."""

    def __init__(self, arch: str, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        channels, height, width = dataset.shape
        if (height, width) != (32, 32):
            raise BadInput(f"{arch} takes 32x32 images, and {dataset.name} has {height}x{width}")
        if len(dataset.classes) != 10:
            raise BadInput(
                f"{arch} has 10 outputs, and {dataset.name} has {len(dataset.classes)} classes"
            )
        self.arch, self.dataset, self.recipe, self.seed = arch, dataset, recipe, seed
        self.preprocess = Preprocess.standard(channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = create_model(arch, channels)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, fused=True)
        self.history: list[float] = []
        self._augmenter = Augmenter(dataset.fit_images, recipe)
        digest = hashlib.sha256(dataset.fit_images.tobytes())
        digest.update(dataset.fit_labels.tobytes())
        self._identity: dict[str, Any] = {
            "arch": arch,
            "dataset": dataset.name,
            "data_sha256": digest.hexdigest(),
            "seed": seed,
            "recipe": asdict(recipe),
        }

    def run_epoch(self) -> float:
        """Train one epoch; return the mean loss."""
        epoch = len(self.history)
        steps = self._augmenter.steps
        generator = np.random.default_rng([self.seed, epoch])
        labels = self.dataset.fit_labels
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            # What dropout draws: the same after a resumption.
            state = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))
            mean = self._run_steps(epoch, steps, labels, generator)
        if not math.isfinite(mean):
            raise BadInput(
                f"training diverged in epoch {epoch + 1} (the loss is {mean}); use another seed"
            )
        return mean

    def _run_steps(
        self, epoch: int, steps: int, labels: NDArray[np.int64], generator: np.random.Generator
    ) -> float:
        """Take an epoch's steps; return the mean loss."""
        total = torch.zeros(())
        for step, (index, pixels) in enumerate(self._augmenter.epoch(generator)):
            rate = learning_rate(self.recipe, epoch * steps + step, self.recipe.epochs * steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.model(self.preprocess.apply(pixels))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[index]))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach()
        return total.item() / steps

    def held_out_accuracy(self) -> float | None:
        """Return the accuracy on the held-out images, None if none are held out."""
        data = self.dataset
        if not data.held_out:
            return None
        return evaluate(self.model, data.search_images, data.search_labels, self.preprocess)

    def save(self, path: Path) -> None:
        """Write all that the next epoch needs, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors[name] = parameter
            tensors[f"{name}.mean"] = state["exp_avg"]
            tensors[f"{name}.square"] = state["exp_avg_sq"]
            tensors[f"{name}.step"] = state["step"]
        record = {"schema": SCHEMA, "history": self.history, "run": self._identity}
        write_bytes(path, tensor_bytes(tensors, record))

    def restore(self, path: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises
        ------
        BadInput
            If it is of another run.
        BadNetwork
            If the file is corrupt.
        """
        tensors, record = read_tensors(path)
        if record is None or not isinstance(record.get("history"), list):
            raise BadNetwork(f"{path}: not the state of an unfinished run; delete it")
        mine, found = self._identity, record.get("run")
        if not isinstance(found, dict) or mine != found:
            found = found if isinstance(found, dict) else {}
            raise BadInput(
                f"{path} is of another run ({differences(found, mine)}); ask for the same to resume"
                " it, or delete the file (or do not resume) to start anew"
            )
        self._check_tensors(path, tensors)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])
                self.optimizer.state[parameter] = {
                    "step": tensors[f"{name}.step"].clone(),
                    "exp_avg": tensors[f"{name}.mean"].clone(),
                    "exp_avg_sq": tensors[f"{name}.square"].clone(),
                }
        self.history = list(record["history"])

    def _check_tensors(self, path: Path, tensors: dict[str, Tensor]) -> None:
        wanted: dict[str, torch.Size] = {}
        for name, parameter in self.model.named_parameters():
            wanted |= {f"{name}{kind}": parameter.shape for kind in ("", ".mean", ".square")}
            wanted[f"{name}.step"] = torch.Size()
        for name in sorted(set(wanted) | set(tensors)):
            tensor = tensors.get(name)
            if (
                tensor is None
                or tensor.shape != wanted.get(name)
                or tensor.dtype != torch.float32
                or not torch.isfinite(tensor).all()
            ):
                raise BadNetwork(
                    f"{path}: the tensor {name} of the unfinished run is not as written; "
                    "delete the file"
                )


class _Report:
    """A bar on a terminal, a line for each epoch elsewhere; both to standard error."""

    def __init__(self, title: str, epochs: int, *, show: bool) -> None:
        self._console = Console(stderr=True, quiet=not show)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._title, self._epochs = title, epochs
        self._task = self._bar.add_task(title, total=epochs)

    def __enter__(self) -> _Report:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def epoch(self, done: int, loss: float | None, held_out: float | None, seconds: float) -> None:
        """Show that ``done`` epochs are done."""
        text = self._title
        if loss is not None:
            text += f"  loss {loss:.4f}"
        if held_out is not None:
            text += f"  held-out {held_out:.2%}"
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal:
            line = f"{text}  epoch {done}/{self._epochs}  {seconds:.0f} s"
            self._console.print(line, highlight=False, soft_wrap=True)


def train(
    arch: str,
    dataset: Dataset,
    *,
    seed: int = 0,
    epochs: int | None = None,
    threads: int | None = None,
    out: Path,
    resume: bool = True,
    progress: bool = True,
    max_seconds: float | None = None,
) -> Checkpoint:
    """Train a network and write its checkpoint.

    The last ``dataset.held_out`` training images are never trained on, and the test images are
    looked at once, when all is done. After every epoch the state goes to ``<out>.resume``; a run
    that was stopped (also by Ctrl-C) goes on from there and ends in the same weights. That file
    is deleted when the checkpoint is written.

    Parameters
    ----------
    arch : str
        One of :data:`quant.models.MODELS`.
    dataset : Dataset
        32x32 images of 10 classes.
    seed : int
        Of the initial weights, shuffles and crops. The same seed, number of threads and torch
        build give the same bytes.
    epochs : int, optional
        Default: what :func:`quant.recipe.recipe_for` says.
    threads : int, optional
        Threads torch uses; default: as torch is set.
    out : Path
        The checkpoint to write, usually ``.safetensors``.
    resume : bool
        Whether an unfinished run beside ``out`` is continued; otherwise it is started anew.
    progress : bool
        Whether to report on standard error.
    max_seconds : float, optional
        Stop after the epoch in which this time is over. What is returned then is unfinished
        (``accuracy`` is None, ``epochs`` counts those done) and not written; the same call goes on.

    Returns
    -------
    Checkpoint

    Raises
    ------
    BadInput
        If an argument is out of range, the network does not take such images, ``<out>.resume``
        is of another run, or a file cannot be written.
    """
    recipe = recipe_for(arch, dataset.name)
    if epochs is not None:
        if epochs < 1:
            raise BadInput(f"the number of epochs must be at least 1, and is {epochs}")
        recipe = replace(recipe, epochs=epochs)
    if seed < 0:
        raise BadInput(f"the seed must be at least 0, and is {seed}")
    ensure_folder(out.parent)
    if out.is_dir():
        raise BadInput(f"{out} is a folder; give the path of the checkpoint file to write")
    state = resume_path(out)
    start = time.monotonic()
    with _threads(threads):
        run = _Run(arch, dataset, recipe, seed)
        if resume and state.is_file():
            run.restore(state)
        with _Report(f"{arch} on {dataset.name}", recipe.epochs, show=progress) as report:
            report.epoch(len(run.history), None, None, 0)
            while len(run.history) < recipe.epochs:
                loss = run.run_epoch()
                held_out = run.held_out_accuracy()
                run.history.append(loss if held_out is None else held_out)
                run.save(state)
                spent = time.monotonic() - start
                report.epoch(len(run.history), loss, held_out, spent)
                if max_seconds is not None and spent > max_seconds:
                    break
        checkpoint = _finish(run)
    if len(run.history) == recipe.epochs:
        save_checkpoint(out, checkpoint)
        state.unlink(missing_ok=True)
    return checkpoint


def _finish(run: _Run) -> Checkpoint:
    data = run.dataset
    finished = len(run.history) == run.recipe.epochs
    accuracy = None
    if finished:
        accuracy = evaluate(run.model, data.test_images, data.test_labels, run.preprocess)
    extra: dict[str, Any] = {
        "trained_on": len(data.fit_images),
        "planned_epochs": run.recipe.epochs,
        "threads": torch.get_num_threads(),
    }
    if data.held_out:
        extra["held_out_accuracy"] = run.history[-1]
    return Checkpoint(
        arch=run.arch,
        in_channels=data.shape[0],
        dataset=data.name,
        preprocess=run.preprocess,
        state={name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()},
        held_out=data.held_out,
        accuracy=accuracy,
        seed=run.seed,
        epochs=len(run.history),
        extra=extra,
    )
