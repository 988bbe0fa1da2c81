"""Trained weights on disk: safetensors with one JSON record, or a plain PyTorch state_dict."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hwgen.errors import BadInput, BadNetwork
from hwgen.files import write_bytes
from quant.models import MODELS, Preprocess, create_model

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "load_model",
    "read_tensors",
    "save_checkpoint",
    "shipped_checkpoint",
    "tensor_bytes",
]

SCHEMA = 1
# One key only: safetensors writes several in an order that changes from run to run.
METADATA_KEY = "hwgen"
WEIGHTS = Path(__file__).parent / "weights"
_SHAPE_KEY = "conv1.weight"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """Trained weights and what is known of how they were made.

    Parameters
    ----------
    arch : str
        One of :data:`quant.models.MODELS`.
    in_channels : int
    dataset : str or None
        Name of the data set; None if the file does not say.
    preprocess : Preprocess
        One scale and offset per input channel.
    state : mapping of str to float32 Tensor
        Exactly the parameters of ``create_model(arch, in_channels)``, all finite.
    held_out : int
        Number of last training images the network never saw.
    accuracy : float or None
        Top-1 fraction on the test images, None if not measured.
    seed, epochs : int or None
        None if the file does not say.
    extra : mapping
        Further JSON values, such as the held-out accuracy.

    Raises
    ------
    BadNetwork
        If the weights do not fit the network (the message names the tensor) or a field is wrong.
    """

    arch: str
    in_channels: int
    dataset: str | None
    preprocess: Preprocess
    state: Mapping[str, Tensor] = field(repr=False)
    held_out: int = 0
    accuracy: float | None = None
    seed: int | None = None
    epochs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            model = create_model(self.arch, self.in_channels)
        except BadInput as error:
            raise BadNetwork(str(error)) from error
        _check_state(self.state, model.state_dict(), f"{self.arch} weights")
        if len(self.preprocess.scale) != self.in_channels:
            raise BadNetwork(
                f"preprocessing must have {self.in_channels} channels, as the network does, and "
                f"has {len(self.preprocess.scale)}"
            )
        if self.held_out < 0:
            raise BadNetwork(f"held_out must be at least 0, and is {self.held_out}")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise BadNetwork(f"accuracy must be a fraction from 0 to 1, and is {self.accuracy}")


def _check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(map(str, unknown))}"] if unknown else []
        raise BadNetwork(f"{where}: must hold the tensors {', '.join(wanted)}; {'; '.join(parts)}")
    for name, reference in wanted.items():
        tensor = state[name]
        if tensor.shape != reference.shape:
            raise BadNetwork(
                f"{where}: {name} must have shape {tuple(reference.shape)}, and has "
                f"{tuple(tensor.shape)}"
            )
        if tensor.dtype != torch.float32:
            raise BadNetwork(f"{where}: {name} must be float32, and is {tensor.dtype}")
        wrong = (~torch.isfinite(tensor)).nonzero()
        if len(wrong):
            index = tuple(wrong[0].tolist())
            raise BadNetwork(
                f"{where}: every weight must be finite, and {name}{list(index)} is "
                f"{tensor[index].item()} ({len(wrong)} such in {name}); train again"
            )


def tensor_bytes(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of ``tensors`` and one JSON record; equal input, equal bytes."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    flat = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(flat, metadata={METADATA_KEY: text})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return a safetensors file's tensors and its JSON record, None if it has none of ours.

    Raises
    ------
    BadNetwork
        If the file cannot be read, or is truncated or corrupt.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise BadNetwork(f"{path}: cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise BadNetwork(
            f"{path}: not a whole safetensors file ({error}); copy or train it again"
        ) from error
    if METADATA_KEY not in metadata:
        return tensors, None
    try:
        record = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise BadNetwork(f"{path}: its record is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else record
        raise BadNetwork(f"{path}: the record must have schema {SCHEMA}, and has {found!r}")
    return tensors, record


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as safetensors, atomically; equal checkpoints give equal bytes.

    Raises
    ------
    BadInput
        If the file cannot be written.
    """
    record = {
        "schema": SCHEMA,
        "arch": checkpoint.arch,
        "in_channels": checkpoint.in_channels,
        "dataset": checkpoint.dataset,
        "scale": list(checkpoint.preprocess.scale),
        "offset": list(checkpoint.preprocess.offset),
        "held_out": checkpoint.held_out,
        "accuracy": checkpoint.accuracy,
        "seed": checkpoint.seed,
        "epochs": checkpoint.epochs,
        "extra": dict(checkpoint.extra),
    }
    write_bytes(path, tensor_bytes(checkpoint.state, record))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: ours, or a bare state_dict as safetensors or as ``torch.save`` wrote it.

    Of a bare state_dict the network is told from the tensors' names and shapes; preprocessing is
    then taken to be :meth:`.Preprocess.standard`.

    Raises
    ------
    BadNetwork
        If the file is missing, truncated or corrupt, or its tensors have wrong names or shapes
        or values that are not finite; the message names the file and the tensor.
    """
    try:
        there, zipped = path.is_file(), zipfile.is_zipfile(path)
    except OSError as error:
        raise BadNetwork(f"{path}: cannot be read ({error.strerror or error})") from error
    if not there:
        raise BadNetwork(f"{path}: no such checkpoint file; give its path or train one first")
    record: dict[str, Any] | None = None
    if path.suffix in (".pt", ".pth") or (zipped and path.suffix != ".safetensors"):
        tensors = _read_torch(path)
    else:
        tensors, record = read_tensors(path)
    try:
        return _bare(tensors) if record is None else _from_record(tensors, record)
    except BadNetwork as error:
        raise BadNetwork(f"{path}: {error}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        data = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise BadNetwork(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        loaded = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for corrupt files, pickle's among them
        # The first sentence: those after it advise to run what the file holds.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise BadNetwork(
            f"{path}: must be a whole file of tensors only, a state_dict saved by torch.save "
            f"({reason}); save model.state_dict() again"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise BadNetwork(
            f"{path}: must hold a state_dict (names to tensors), and holds a "
            f"{type(loaded).__name__} with other values; save model.state_dict()"
        )
    return loaded


def _bare(tensors: dict[str, Tensor]) -> Checkpoint:
    first = tensors.get(_SHAPE_KEY)
    for arch in MODELS:
        for channels in (1, 3):
            try:
                wanted = create_model(arch, channels).state_dict()
            except BadInput:
                continue
            if set(tensors) != set(wanted) or first is None:
                continue
            # Same names: the input channels decide, and a wrong shape elsewhere is then named.
            if first.ndim == 4 and first.shape[1] == channels:
                return Checkpoint(
                    arch=arch,
                    in_channels=channels,
                    dataset=None,
                    preprocess=Preprocess.standard(channels),
                    state=_as_float32(tensors),
                )
    names = ", ".join(list(tensors)[:12]) or "none"
    raise BadNetwork(
        f"no network of {', '.join(MODELS)} has these tensors: {names}"
        + (f"; {_SHAPE_KEY} has shape {tuple(first.shape)}" if first is not None else "")
        + "; import another network from ONNX or from a torch.nn.Module"
    )


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        raise BadNetwork(f"{wrong[0]} must be of floats, and is {tensors[wrong[0]].dtype}")
    return {name: tensor.detach().to(torch.float32) for name, tensor in tensors.items()}


def _from_record(tensors: dict[str, Tensor], record: dict[str, Any]) -> Checkpoint:
    expected: dict[str, tuple[type, ...]] = {
        "arch": (str,),
        "in_channels": (int,),
        "dataset": (str, type(None)),
        "scale": (list,),
        "offset": (list,),
        "held_out": (int,),
        "accuracy": (float, int, type(None)),
        "seed": (int, type(None)),
        "epochs": (int, type(None)),
        "extra": (dict,),
    }
    if set(record) != {*expected, "schema"}:
        differing = sorted(set(record) ^ {*expected, "schema"})
        raise BadNetwork(f"the record has missing or unknown keys: {', '.join(differing)}")
    for key, kinds in expected.items():
        if not isinstance(record[key], kinds) or isinstance(record[key], bool):
            raise BadNetwork(f"the record's {key} must not be {record[key]!r}")
    numbers = [*record["scale"], *record["offset"]]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
        raise BadNetwork(f"the record's scale and offset must be finite numbers, not {numbers}")
    try:
        preprocess = Preprocess(scale=tuple(record["scale"]), offset=tuple(record["offset"]))
    except BadInput as error:
        raise BadNetwork(str(error)) from error
    names = ("arch", "in_channels", "dataset", "held_out", "accuracy", "seed", "epochs", "extra")
    return Checkpoint(
        preprocess=preprocess,
        state=_as_float32(tensors),
        **{name: record[name] for name in names},
    )


def load_model(checkpoint: Checkpoint) -> nn.Module:
    """Return the float network with its trained weights, in evaluation mode.

    It takes preprocessed input: ``model(checkpoint.preprocess.apply(images))``.
    """
    model = create_model(checkpoint.arch, checkpoint.in_channels)
    model.load_state_dict(dict(checkpoint.state))
    return model.eval()


def shipped_checkpoint(arch: str, dataset: str) -> Path:
    """Return the path of the trained weights that ship for a network and a data set.

    Raises
    ------
    BadInput
        If none ship for this pair.
    """
    path = WEIGHTS / f"{arch}-{dataset}.safetensors"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))) or "none"
        raise BadInput(
            f"no trained weights ship for {arch} on {dataset} (there are: {have}); "
            "train them with hwgen train and give the file"
        )
    return path
