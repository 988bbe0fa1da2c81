"""From what a user names to a float network: a shipped checkpoint, a checkpoint file or an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwgen.errors import BadInput
from quant.checkpoints import load_checkpoint, shipped_checkpoint
from quant.checkpoints import load_model as load_module
from quant.data.dataset import Dataset
from quant.graph import FloatGraph
from quant.importers import fold, import_onnx, import_torch
from quant.models import MODELS, Preprocess

__all__ = ["Model", "crop_images", "load_model", "parse_preprocess"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A float network with what makes its input from raw pixels.

    Parameters
    ----------
    name : str
    graph : FloatGraph
        Folded; takes preprocessed images.
    preprocess : Preprocess
    held_out : int or None
        Last training images it never saw; None where the file does not say.
    """

    name: str
    graph: FloatGraph
    preprocess: Preprocess
    held_out: int | None

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Classes ``(N,)`` of raw images ``(N, C, H, W)``, cropped, computed in float32."""
        images = self.crop(images)
        out = []
        for start in range(0, len(images), 512):
            x = self.preprocess.apply(images[start : start + 512])
            logits = self.graph.evaluate(x, dtype=torch.float32, batch_size=512)
            out.append(np.argmax(logits.reshape(len(logits), -1), axis=1))
        return np.concatenate(out).astype(np.int64)

    def crop(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Raw images of the size that it takes; see :func:`crop_images`."""
        return crop_images(images, self.graph.input_shape[1:], self.name)

    def accuracy(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """Top-1 fraction on raw images."""
        return float(np.mean(self.classify(images) == labels))


def parse_preprocess(text: str, channels: int) -> Preprocess:
    """``standard``, ``unit``, ``raw`` or ``scale,offset`` as per-channel preprocessing.

    ``standard`` is ``(pixel / 255 - 0.5) / 0.25``, ``unit`` is ``pixel / 255``, ``raw`` the pixel itself.

    Raises
    ------
    BadInput
        If it is none of these.
    """
    named = {"standard": (4 / 255, -2.0), "unit": (1 / 255, 0.0), "raw": (1.0, 0.0)}
    pair: Sequence[float]
    if text in named:
        pair = named[text]
    else:
        try:
            pair = [float(part) for part in text.split(",")]
        except ValueError:
            pair = []
        if len(pair) != 2:
            raise BadInput(
                f"preprocessing must be {', '.join(named)} or 'scale,offset' for x = pixel * scale + offset,"
                f" not {text!r}"
            )
    return Preprocess(scale=(pair[0],) * channels, offset=(pair[1],) * channels)


def load_model(
    spec: str | Path | nn.Module, *, data: Dataset, preprocess: str | None = None
) -> Model:
    """Load a float network.

    Parameters
    ----------
    spec : str, Path or torch.nn.Module
        The name of a shipped network (trained for ``data``), a file (``.onnx``, ``.safetensors`` or
        ``.pt``, a state_dict), or a trained module of your own that takes the data's image size.
    data : Dataset
        Images that it will be used with.
    preprocess : str, optional
        See :func:`parse_preprocess`; the checkpoint's own by default, ``standard`` for ONNX files and
        modules.

    Raises
    ------
    BadInput, BadNetwork, UnsupportedLayer
    """
    if isinstance(spec, nn.Module):
        model = Model(
            name=type(spec).__name__,
            graph=fold(import_torch(spec, data.shape)),
            preprocess=parse_preprocess(preprocess or "standard", data.shape[0]),
            held_out=None,
        )
    else:
        model = _load_file(spec, data, preprocess)
    return _checked(model, data)


def _load_file(spec: str | Path, data: Dataset, preprocess: str | None) -> Model:
    """A shipped network or a file."""
    path = Path(spec)
    if str(spec) in MODELS:
        path = shipped_checkpoint(str(spec), data.name)
    elif not path.is_file():
        raise BadInput(
            f"the model must be one of {', '.join(MODELS)} or an .onnx, .safetensors or .pt file, and there is no"
            f" file {path}"
        )
    if path.suffix == ".onnx":
        graph = fold(import_onnx(path))
        chosen = parse_preprocess(preprocess or "standard", graph.input_shape[0])
        return Model(name=path.stem, graph=graph, preprocess=chosen, held_out=None)
    checkpoint = load_checkpoint(path)
    shape = (checkpoint.in_channels, 32, 32)
    graph = fold(import_torch(load_module(checkpoint), shape))
    chosen = checkpoint.preprocess
    if preprocess is not None:
        chosen = parse_preprocess(preprocess, checkpoint.in_channels)
    held_out = checkpoint.held_out if checkpoint.dataset == data.name else None
    name = str(spec) if str(spec) in MODELS else path.stem
    return Model(name=name, graph=graph, preprocess=chosen, held_out=held_out)


def _checked(model: Model, data: Dataset) -> Model:
    """``model``, if it can classify the images of ``data``."""
    channels = data.shape[0]
    if model.graph.input_shape[0] != channels:
        raise BadInput(
            f"model {model.name} takes {model.graph.input_shape[0]} channels and the images of {data.name} have"
            f" {channels}; choose another data set or model"
        )
    model.crop(data.test_images[:1])
    if model.graph.output_shape[0] < len(data.classes):
        raise BadInput(
            f"model {model.name} has {model.graph.output_shape[0]} outputs and {data.name} has"
            f" {len(data.classes)} classes; choose another data set or model"
        )
    return model


def crop_images(images: NDArray[np.uint8], size: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """Raw images ``(N, C, H, W)`` of the size that a network takes: their centre where that is smaller.

    Parameters
    ----------
    images : ndarray of uint8
    size : tuple of int
        Rows and columns that the network takes.
    name : str
        The network's, for the message.

    Raises
    ------
    BadInput
        If the network takes larger images, or by an odd number of pixels smaller ones.
    """
    have = images.shape[2:]
    if len(size) != 2 or any(h < w or (h - w) % 2 for h, w in zip(have, size, strict=True)):
        raise BadInput(
            f"model {name} takes images of {size} pixels, the data has {have}; they may be larger by an"
            " even number only"
        )
    top, left = ((h - w) // 2 for h, w in zip(have, size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]
