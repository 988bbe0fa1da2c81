"""Fine-tuning of float graphs, with whatever a quantiser does to them in the forward pass.

The network of raw pixels is trained as it is assembled: maps put each layer's weights, biases and
outputs on the grids of the integer network, and pass gradients straight through (Bengio, Leonard,
Courville 2013). Deterministic by seed and number of threads; can be continued after any epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from hwgen.errors import BadInput
from hwgen.ir import INPUT
from quant import graph as fg
from quant.progress import Progress, Silent
from quant.recipe import Augmenter, Recipe, learning_rate
from quant.straight import TensorMap, fixed_ste, ste_round, uniform_ste
from quant.trainable import layers_of, mac, program

__all__ = [
    "FineTuner",
    "FinetuneRecipe",
    "TensorMap",
    "finetune",
    "fixed_ste",
    "ste_round",
    "uniform_ste",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe:
    """How to fine-tune: AdamW, a warm-up over the first tenth of the steps, then a cosine to zero.

    Parameters
    ----------
    epochs : int
        0 changes nothing.
    rate : float
        Largest learning rate, above 0.
    batch : int
        Images in a step; the last few images of an epoch that fill none are left out of it.
    crop : int
        Each image is shifted by up to so many pixels each way, zeros coming in.
    mirror : bool
        Whether half of the images are mirrored left to right.
    weight_decay : float
        On weights, not on biases.
    distill : float
        Share of the loss, 0 to 1, that compares with the teacher's softened outputs (Hinton,
        Vinyals, Dean 2015) and not with the labels.
    temperature : float
        Of the softening, above 0.

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    epochs: int
    rate: float = 1e-3
    batch: int = 128
    crop: int = 2
    mirror: bool = False
    weight_decay: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        least = {"epochs": 0, "batch": 1, "crop": 0, "weight_decay": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise BadInput(
                    f"{name} of fine-tuning must be at least {low}, not {getattr(self, name)}"
                )
        for name in ("rate", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"{name} of fine-tuning must be above 0, not {value}")
        if not 0 <= self.distill <= 1:
            raise BadInput(f"distill of fine-tuning must be 0 to 1, not {self.distill}")

    @property
    def training(self) -> Recipe:
        """The same as a recipe of training."""
        return Recipe(
            epochs=self.epochs,
            peak_rate=self.rate,
            weight_decay=self.weight_decay,
            crop=self.crop,
            mirror=self.mirror,
            batch=self.batch,
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is not None and count < 1:
        raise BadInput(f"the number of threads must be at least 1, and is {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class FineTuner:
    """A run of fine-tuning, epoch by epoch; see :func:`finetune` for the parameters.

    Attributes
    ----------
    epoch, step : int
        Epochs and steps done.
    steps : int
        Steps of the whole run.
    """

    def __init__(
        self,
        graph: fg.FloatGraph,
        *,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        recipe: FinetuneRecipe,
        seed: int = 0,
        weights: Mapping[str, TensorMap] | None = None,
        biases: Mapping[str, TensorMap] | None = None,
        outputs: Mapping[str, TensorMap] | None = None,
        masks: Mapping[str, NDArray[np.bool_]] | None = None,
        teacher: fg.FloatGraph | None = None,
    ) -> None:
        _check_images(graph, images, labels)
        self._graph, self._recipe, self._seed = graph, recipe, seed
        self._labels = torch.tensor(labels)
        self._augmenter = Augmenter(images, recipe.training)
        layers = [node.name for node in graph.mac_nodes]
        self._weights = _known("weights", weights, layers)
        self._biases = _known("biases", biases, layers)
        names = [node.name for node in graph.nodes[1:]]
        self._program = program(graph, _known("outputs", outputs, names))
        self._layers = layers_of(graph, images)
        self.set_masks(_known("masks", masks, layers))
        self._teacher = None
        if recipe.distill:
            self._teacher = FineTuner(
                teacher or graph,
                images=images[:1],
                labels=labels[:1],
                recipe=replace(recipe, distill=0.0),
            )
        groups = [
            {
                "params": [layer.weight for layer in self._layers.values()],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [layer.bias for layer in self._layers.values()], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.rate, fused=True)
        self.epoch = self.step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self._augmenter.steps

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self._recipe.epochs * self._augmenter.steps

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are trained."""
        return tuple(self._layers)

    def set_masks(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        """Keep weights at zero from now on where a layer's mask is false.

        Raises
        ------
        BadInput
            If a mask has another shape than its layer's weight.
        """
        for name, mask in masks.items():
            layer = self._layers[name]
            if mask.shape != layer.weight.shape:
                raise BadInput(
                    f"the mask of layer {name} must have the shape {tuple(layer.weight.shape)} of"
                    f" its weight, not {mask.shape}"
                )
            layer.mask = torch.tensor(mask, dtype=torch.float32)

    def weight(self, name: str) -> NDArray[np.float32]:
        """Weights of a layer of the raw-pixel network as trained so far, masked, not mapped."""
        with torch.no_grad():
            values: NDArray[np.float32] = self._layers[name].real()[0].numpy()
        return values

    def forward(self, pixels: Tensor) -> Tensor:
        """Outputs ``(N, classes)`` for raw images ``(N, C, H, W)``, maps included."""
        values = {INPUT: pixels.float()}
        for name, inputs, compute, done in self._program:
            if compute is None:
                layer = self._layers[name]
                weight, bias = layer.real()
                if name in self._weights:
                    weight = self._weights[name](weight)
                if name in self._biases:
                    bias = self._biases[name](bias)
                values[name] = mac(layer.node, values[inputs[0]], weight, bias)
            else:
                values[name] = compute(*(values[i] for i in inputs))
            for other in done:
                del values[other]
        return values[self._graph.output].flatten(1)

    def run_epoch(self, after_step: Callable[[FineTuner], object] | None = None) -> float:
        """Train one epoch; return the mean loss.

        Raises
        ------
        BadInput
            If training diverges.
        """
        generator = np.random.default_rng([self._seed, self.epoch])
        total = torch.zeros(())
        for index, pixels in self._augmenter.epoch(generator):
            rate = learning_rate(self._recipe.training, self.step, self.steps)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(pixels, self._labels[torch.from_numpy(index)])
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.detach()
            self.step += 1
            if after_step is not None:
                after_step(self)
        self.epoch += 1
        mean = total.item() / self.steps_per_epoch
        if not math.isfinite(mean):
            raise BadInput(
                f"fine-tuning diverged in epoch {self.epoch} (the loss is {mean}); lower its rate"
                f" from {self._recipe.rate:g}"
            )
        return mean

    def _loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        found = self.forward(pixels)
        share, heat = self._recipe.distill, self._recipe.temperature
        loss = F.cross_entropy(found, labels) if share < 1 else torch.zeros(())
        if self._teacher is None:
            return loss
        with torch.no_grad():
            wanted = (self._teacher.forward(pixels) / heat).softmax(1)
        # The square keeps the gradients' size whatever the temperature is.
        soft = F.cross_entropy(found / heat, wanted) * heat**2
        return (1 - share) * loss + share * soft

    def graph(self) -> fg.FloatGraph:
        """The network with the weights and biases as trained so far; masked, not mapped."""
        changed = {}
        with torch.no_grad():
            for name, layer in self._layers.items():
                weight, bias = layer.real()
                changed[name] = replace(layer.node, weight=weight.numpy(), bias=bias.numpy())
        nodes = tuple(changed.get(node.name, node) for node in self._graph.nodes)
        return replace(self._graph, nodes=nodes)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the next epoch needs, for :meth:`restore` of a tuner made the same way."""
        found: dict[str, NDArray[Any]] = {"epoch": np.array(self.epoch)}
        for name, layer in self._layers.items():
            for kind, tensor in (("weight", layer.weight), ("bias", layer.bias)):
                found[f"{name}.{kind}"] = tensor.detach().numpy().copy()
                for key, value in self._optimizer.state.get(tensor, {}).items():
                    found[f"{name}.{kind}.{key}"] = value.numpy().copy()
            if layer.mask is not None:
                found[f"{name}.mask"] = layer.mask.numpy() > 0
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what :meth:`arrays` gave.

        Raises
        ------
        BadInput
            If that is of another network.
        """
        try:
            self.epoch = int(arrays["epoch"])
            self.step = self.epoch * self.steps_per_epoch
            with torch.no_grad():
                for name, layer in self._layers.items():
                    for kind, tensor in (("weight", layer.weight), ("bias", layer.bias)):
                        tensor.copy_(torch.tensor(arrays[f"{name}.{kind}"]))
                        keys = ("step", "exp_avg", "exp_avg_sq") if self.epoch else ()
                        self._optimizer.state[tensor] = {
                            key: torch.tensor(arrays[f"{name}.{kind}.{key}"]) for key in keys
                        }
                    if f"{name}.mask" in arrays:
                        self.set_masks({name: arrays[f"{name}.mask"]})
        except (KeyError, RuntimeError) as error:
            raise BadInput(
                f"the state of fine-tuning is of another network ({error}); start anew"
            ) from error


def finetune(
    graph: fg.FloatGraph,
    *,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    recipe: FinetuneRecipe,
    seed: int = 0,
    weights: Mapping[str, TensorMap] | None = None,
    biases: Mapping[str, TensorMap] | None = None,
    outputs: Mapping[str, TensorMap] | None = None,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    teacher: fg.FloatGraph | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    after_step: Callable[[FineTuner], object] | None = None,
    after_epoch: Callable[[FineTuner], object] | None = None,
) -> fg.FloatGraph:
    """Fine-tune weights and biases of all convolutions and linear layers.

    Parameters
    ----------
    graph : FloatGraph
        The network of raw pixels: see :func:`quant.baseline.with_preprocessing`. Affines stay.
    images : uint8 array
        Raw training images ``(N, C, H, W)``.
    labels : int64 array
        ``(N,)``.
    recipe : FinetuneRecipe
    seed : int
        Of the order, the crops and the mirroring.
    weights, biases : mapping of str to callable, optional
        By layer: what the forward pass makes of its float32 weights (biases). Differentiable, or
        straight-through as those of :mod:`quant.straight`.
    outputs : mapping of str to callable, optional
        By node, the last of its group (see :mod:`quant.grouping`): what the forward pass makes of
        its tensor. Element by element, and never decreasing: it may be done behind a max pool.
    masks : mapping of str to bool array, optional
        By layer, in the shape of its weight: false where the weight is and stays 0.
    teacher : FloatGraph, optional
        Of raw pixels, where the recipe distils; by default the network as given, without maps.
    threads : int, optional
        Threads torch uses; default: as torch is set.
    progress : Progress, optional
        Told of every epoch.
    after_step, after_epoch : callable, optional
        Called with the :class:`FineTuner`.

    Returns
    -------
    FloatGraph
        Of raw pixels, weights not mapped: apply the maps' grids to assemble it.

    Raises
    ------
    BadInput
        If there are no images, their shape or labels are wrong, a map or mask is for no layer, or
        training diverges.
    """
    with _threads(threads):
        tuner = FineTuner(
            graph,
            images=images,
            labels=labels,
            recipe=recipe,
            seed=seed,
            weights=weights,
            biases=biases,
            outputs=outputs,
            masks=masks,
            teacher=teacher,
        )
        with (progress or Silent()).steps("fine-tune", recipe.epochs) as advance:
            while tuner.epoch < recipe.epochs:
                loss = tuner.run_epoch(after_step)
                if after_epoch is not None:
                    after_epoch(tuner)
                advance(tuner.epoch, recipe.epochs, f"loss {loss:.4f}")
    return tuner.graph()


def _check_images(graph: fg.FloatGraph, images: Any, labels: Any) -> None:
    shape = graph.input_shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise BadInput(
            f"fine-tuning needs raw training images, uint8 of shape ({wanted}) with N at"
            f" least 1, not {images.dtype} of shape {images.shape}"
        )
    if len(shape) != 3:
        raise BadInput(f"fine-tuning needs a network of images, not of the shape {shape}")
    classes = math.prod(graph.output_shape)
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise BadInput(
            f"fine-tuning needs a label of 0 to {classes - 1} for each of {len(images)} images,"
            f" not shape {labels.shape} with {labels.min()} to {labels.max()}"
        )


def _known(kind: str, given: Mapping[str, _T] | None, names: list[str]) -> dict[str, _T]:
    found = dict(given or {})
    unknown = [name for name in found if name not in names]
    if unknown:
        raise BadInput(
            f"{kind} of fine-tuning are given for {', '.join(unknown)}, but there are"
            f" {', '.join(names)}"
        )
    return found
