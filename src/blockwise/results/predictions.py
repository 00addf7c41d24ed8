"""What is kept of every validation and test image of a cell: `predictions.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from blockwise.io.files import read_regular
from blockwise.results.record import Record

PREDICTIONS = "predictions.safetensors"
SPLITS = ("val", "test")
TYPES = {"label": np.uint16, "predicted": np.uint16, "confidence": np.float32, "log_likelihood": np.float32}


@dataclass(frozen=True)
class Predictions:
    """The predictions of one cell for the images of one split, in the order of the data; arrays of shape (images,).

    Attributes:
        classes: Names of the classes.
        label: Number of the true class.
        predicted: Number of the predicted class.
        confidence: Probability of the predicted class, by softmax.
        log_likelihood: Log of the probability of the true class.
    """

    classes: tuple[str, ...]
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    log_likelihood: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each image is classified correctly."""
        return np.asarray(self.label == self.predicted)


def to_bytes(predictions: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> bytes:
    """Return the content of a file.

    Args:
        predictions: Arrays or tensors by split, `val` and `test`, and by name, as in `Predictions`.
        classes: Names of the classes.
    """
    label = np.uint16 if len(classes) <= 1 << 16 else np.uint32
    types = {**TYPES, "label": label, "predicted": label}
    arrays = {
        f"{split}.{name}": np.ascontiguousarray(values, types[name])
        for split, kept in predictions.items()
        for name, values in kept.items()
    }
    return bytes(save(arrays, {"classes": json.dumps(list(classes))}))


def from_bytes(content: bytes) -> dict[str, Predictions]:
    """Return the predictions of each split in the content of a file.

    Raises:
        ValueError: The content is damaged.
    """
    try:
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        classes = tuple(map(str, json.loads(header["__metadata__"]["classes"])))
        splits = {name.partition(".")[0] for name in arrays}
        found = {
            s: Predictions(classes, **{name: arrays[f"{s}.{name}"] for name in TYPES}) for s in SPLITS if s in splits
        }
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    for kept in found.values():
        _check(kept)
    return found


def _check(kept: Predictions) -> None:
    shapes = {getattr(kept, name).shape for name in TYPES}
    numbers = (kept.label, kept.predicted)
    if len(shapes) > 1 or kept.label.ndim != 1 or not all(np.issubdtype(n.dtype, np.unsignedinteger) for n in numbers):
        raise ValueError("the arrays do not fit together")
    if any(len(n) and n.max() >= len(kept.classes) for n in numbers):
        raise ValueError("a class has no name")
    if not all(np.isfinite(values).all() for values in (kept.confidence, kept.log_likelihood)):
        raise ValueError("a value is not finite")


def checksum(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_predictions(record: Record, split: str = "val") -> Predictions | None:
    """Return a cell's predictions for the images of a split, `val` or `test`.

    Returns:
        None if there are none (records of earlier versions have none), or if the file is not the one that the record
        was written with.
    """
    if record.folder is None or PREDICTIONS not in record.files:
        return None
    return _read(str(Path(record.folder, PREDICTIONS)), record.files[PREDICTIONS]).get(split)


@lru_cache(maxsize=512)  # tables and figures ask for the same ones
def _read(path: str, expected: str) -> dict[str, Predictions]:
    try:
        content = read_regular(Path(path))
        return from_bytes(content) if checksum(content) == expected else {}
    except (OSError, ValueError):
        return {}
