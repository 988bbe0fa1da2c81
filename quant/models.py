"""The networks that can be trained by name, as float PyTorch modules.

They take preprocessed pixels, 32x32; :class:`Preprocess` says how raw pixels become those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwgen.errors import BadInput

__all__ = ["MODELS", "AllCNN", "DigitsTiny", "LeNet5", "Preprocess", "create_model"]

MODELS = ("lenet5", "digits-tiny", "allcnn")
NUM_CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Per-channel map from raw pixels to a network's input: ``x = u8 * scale + offset``.

    Parameters
    ----------
    scale, offset : tuple of float
        One finite value per channel; scales are not 0.

    Raises
    ------
    BadInput
        If the lengths differ or a value is not finite, or a scale is 0.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scale or len(self.scale) != len(self.offset):
            raise BadInput(
                "preprocessing needs one scale and one offset per channel, and has "
                f"{len(self.scale)} scales and {len(self.offset)} offsets"
            )
        if not all(math.isfinite(v) for v in (*self.scale, *self.offset)) or 0 in self.scale:
            raise BadInput(
                "preprocessing scales and offsets must be finite and scales not 0: "
                f"scale {self.scale}, offset {self.offset}"
            )

    @classmethod
    def standard(cls, channels: int) -> Preprocess:
        """Return ``x = (u8 / 255 - 0.5) / 0.25``, in [-2, 2], for every channel."""
        return cls(scale=(4 / 255,) * channels, offset=(-2.0,) * channels)

    def apply(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return float32 input for uint8 images, both of shape (N, C, H, W).

        Raises
        ------
        BadInput
            If the images are not uint8 or have another number of channels.
        """
        # torch.tensor copies: sharing the memory of a read-only array would raise a warning.
        raw = images if isinstance(images, Tensor) else torch.tensor(images)
        if raw.dtype != torch.uint8 or raw.ndim != 4 or raw.shape[1] != len(self.scale):
            raise BadInput(
                f"images must be uint8 of shape (N, {len(self.scale)}, H, W), and are "
                f"{raw.dtype} of shape {tuple(raw.shape)}"
            )
        scale = torch.tensor(self.scale, dtype=torch.float32).view(1, -1, 1, 1)
        offset = torch.tensor(self.offset, dtype=torch.float32).view(1, -1, 1, 1)
        return raw.to(torch.float32) * scale + offset


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling; input (N, in_channels, 32, 32), output (N, 10) logits.

    Two 5x5 valid convolutions (6 and 16 channels), each with ReLU and a 2x2 max pool; then linear
    layers of 120, 84 and 10. Flatten order is channel, row, column.

    Parameters
    ----------
    in_channels : int
        1 (grey) or 3 (RGB).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(400, 120)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(84, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(self.flatten(x)))
        logits: Tensor = self.fc3(self.relu4(self.fc2(x)))
        return logits


class DigitsTiny(nn.Module):
    """A CNN of 730 parameters for a small FPGA; input (N, 1, 32, 32), output (N, 10) logits.

    A 5x5 valid convolution of stride 2 (4 channels) and a 3x3 one (8 channels), each with ReLU and
    a 2x2 max pool; then one linear layer from 32 features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, stride=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 8, 3)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        logits: Tensor = self.fc(self.flatten(x))
        return logits


class AllCNN(nn.Module):
    """All-CNN-C of Springenberg, Dosovitskiy, Brox and Riedmiller ("Striving for Simplicity: The
    All Convolutional Net", 2015); input (N, in_channels, 32, 32), output (N, 10) averages.

    Nine convolutions: 3x3 of 96, 96, 96 (stride 2), 192, 192, 192 (stride 2) and 192 channels, then
    1x1 of 192 and 10, with a ReLU behind all but the last; then each channel's average over the 6x6
    pixels left. All 3x3 ones are padded by 1 but the last. Dropout as in the paper: 20 % of the
    input, 50 % behind each convolution of stride 2, in training only.

    There is no batch norm, as the paper has none: what is trained is what is quantised, and nothing
    is folded. Two things differ from the paper. Weights start at the scale that keeps the variance
    through ReLUs (He et al. 2015). And the paper's ReLU in front of the averages is left out: with
    it and AdamW all ten outputs die at 0 within the first epochs.

    Parameters
    ----------
    in_channels : int
        1 (grey) or 3 (RGB).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.drop0 = nn.Dropout(0.2)
        self.conv1 = nn.Conv2d(in_channels, 96, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(96, 96, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(96, 96, 3, padding=1, stride=2)
        self.relu3 = nn.ReLU()
        self.drop3 = nn.Dropout(0.5)
        self.conv4 = nn.Conv2d(96, 192, 3, padding=1)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(192, 192, 3, padding=1)
        self.relu5 = nn.ReLU()
        self.conv6 = nn.Conv2d(192, 192, 3, padding=1, stride=2)
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(0.5)
        self.conv7 = nn.Conv2d(192, 192, 3)
        self.relu7 = nn.ReLU()
        self.conv8 = nn.Conv2d(192, 192, 1)
        self.relu8 = nn.ReLU()
        self.conv9 = nn.Conv2d(192, NUM_CLASSES, 1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages, which a softmax takes as logits."""
        x = self.relu1(self.conv1(self.drop0(x)))
        x = self.relu2(self.conv2(x))
        x = self.drop3(self.relu3(self.conv3(x)))
        x = self.relu4(self.conv4(x))
        x = self.relu5(self.conv5(x))
        x = self.drop6(self.relu6(self.conv6(x)))
        x = self.relu7(self.conv7(x))
        x = self.relu8(self.conv8(x))
        logits: Tensor = self.flatten(self.average(self.conv9(x)))
        return logits


def create_model(arch: str, in_channels: int) -> nn.Module:
    """Return an untrained network, initialised from torch's global generator.

    Parameters
    ----------
    arch : str
        One of :data:`MODELS`.
    in_channels : int
        1 or 3; ``digits-tiny`` takes 1 only.

    Raises
    ------
    BadInput
        If there is no such network, or it does not take so many channels.
    """
    if arch not in MODELS:
        raise BadInput(f"the model must be one of {', '.join(MODELS)}, not {arch!r}")
    allowed = (1,) if arch == "digits-tiny" else (1, 3)
    if in_channels not in allowed:
        raise BadInput(
            f"{arch} takes {' or '.join(map(str, allowed))} input channels, not {in_channels}; "
            "choose another model or data set"
        )
    if arch == "digits-tiny":
        return DigitsTiny()
    return LeNet5(in_channels) if arch == "lenet5" else AllCNN(in_channels)
