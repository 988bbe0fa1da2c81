"""Steps from a float network to an integer network and its accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.flow.model import Model, crop_images
from hwgen.ir.network import Network
from quant.baseline import quantize_linear
from quant.config import QuantConfig
from quant.data.dataset import Dataset

__all__ = ["calibration_images", "input_codes", "integer_accuracy", "quantize"]

CALIBRATION_IMAGES = 500


def calibration_images(
    model: Model, data: Dataset, count: int = CALIBRATION_IMAGES
) -> NDArray[np.uint8]:
    """The first ``count`` held-out training images, of the size that the model takes; never test images."""
    images = data.search_images if data.held_out else data.train_images
    return model.crop(images[:count])


def quantize(model: Model, data: Dataset, config: QuantConfig | None = None) -> Network:
    """The integer network of a float model by uniform post-training quantisation."""
    return quantize_linear(
        model.graph,
        preprocess=model.preprocess,
        calibration=calibration_images(model, data),
        config=config,
        name=model.name,
    )


def input_codes(network: Network, data: Dataset, count: int | None = None) -> NDArray[np.int64]:
    """The first ``count`` test images, all by default, as input codes of the network's size.

    Raises
    ------
    BadInput
        If the images cannot be cropped to that size; see :func:`~hwgen.flow.model.crop_images`.
    """
    images = crop_images(data.test_images[:count], network.input.shape[1:], network.name)
    return images.astype(np.int64)


def integer_accuracy(
    network: Network, data: Dataset, progress: Callable[[int, int], None] | None = None
) -> float:
    """Top-1 fraction of the integer network on all test images.

    Raises
    ------
    BadInput
        If the network takes images that the data set has not.
    """
    if network.input.channels != data.shape[0] or len(network.input.shape) != 3:
        raise BadInput(
            f"network {network.name} takes inputs of shape {network.input.shape}, the images of {data.name} are"
            f" {data.shape}; choose another data set"
        )
    out = network.evaluate(input_codes(network, data), progress=progress)
    classes = np.argmax(out.reshape(len(out), -1), axis=1)
    return float(np.mean(classes == data.test_labels))
