"""The state of a search on disk: written whole after every step, read back by the same search."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.files import ensure_folder, write_bytes
from quant.graph import FloatGraph

__all__ = ["SearchState", "differences", "graph_digest"]

SCHEMA = 1
RECORD = "record"

_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),  # of the archive's headers
)


def graph_digest(graph: FloatGraph) -> str:
    """sha256 of a float network: names, kinds, wiring and constants."""
    total = hashlib.sha256()
    for node in graph.nodes:
        total.update(repr((type(node).__name__, node.name, node.inputs)).encode())
        for name in sorted(set(node.__dataclass_fields__) - {"name", "inputs"}):
            value = getattr(node, name)
            if isinstance(value, np.ndarray):
                total.update(f"{name} {value.shape}".encode() + value.tobytes())
            else:
                total.update(f"{name} {value!r}".encode())
    total.update(graph.output.encode())
    return total.hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In words, how what a file is of differs from what is asked.

    >>> differences({"seed": 0, "network": "ab" * 32}, {"seed": 1, "network": "cd" * 32})
    'other network, seed 0 instead of 1'
    """
    parts = []
    for key in sorted(set(found) | set(wanted)):
        old, new, name = found.get(key), wanted.get(key), key.replace("_", " ")
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts.append(differences(old, new))
        elif _short(old) and _short(new):
            parts.append(f"{name} {_word(old)} instead of {_word(new)}")
        else:  # digests
            parts.append(f"other {name}")
    return ", ".join(parts)


def _short(value: object) -> bool:
    return isinstance(value, int | float | None) or (isinstance(value, str) and len(value) < 32)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchState:
    """A file that holds how far a search is.

    Parameters
    ----------
    path : Path or None
        None: nothing is kept.
    identity : mapping
        JSON values that decide the search: method, options, seed, digests of network and images.
        A file of another identity is refused and left as it is.
    """

    path: Path | None
    identity: Mapping[str, Any]

    def load(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """What :meth:`save` wrote; None where there is no file.

        Raises
        ------
        BadInput
            If the file is damaged or of another search; it stays as it is.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            data = io.BytesIO(self.path.read_bytes())
            if not zipfile.is_zipfile(data):
                raise ValueError("it is not a whole .npz file")
            with np.load(data, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            found = json.loads(bytes(arrays.pop(RECORD)).decode())
            schema, identity, record = found["schema"], found["identity"], found["record"]
        except _DAMAGE as error:
            raise BadInput(
                f"{self.path} is no state of a search ({error}); delete it to start anew"
            ) from error
        mine = json.loads(json.dumps(dict(self.identity)))
        if schema != SCHEMA:
            raise BadInput(
                f"{self.path} has schema {schema}, this version reads {SCHEMA}; delete it to start"
                " anew"
            )
        if identity != mine:
            raise BadInput(
                f"{self.path} is of another search ({differences(identity, mine)}); ask for the same"
                " to go on with it, or name another file"
            )
        return record, arrays

    def save(self, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace the file, atomically.

        Parameters
        ----------
        record : mapping
            JSON values.
        arrays : mapping of str to array
            Integers or floats; no entry is called ``record``.
        """
        if self.path is None:
            return
        text = json.dumps(
            {"schema": SCHEMA, "identity": dict(self.identity), "record": dict(record)}
        )
        buffer = io.BytesIO()
        head = np.frombuffer(text.encode(), dtype=np.uint8)
        np.savez(buffer, allow_pickle=False, **{RECORD: head}, **arrays)
        ensure_folder(self.path.parent)
        write_bytes(self.path, buffer.getvalue())

    def clear(self) -> None:
        """Delete the file: the search is over and its result saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
