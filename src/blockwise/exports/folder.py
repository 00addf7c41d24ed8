"""The folder of an export: what it holds, and checks of what it holds.

`README.md`            the model card; its metadata have the format and the checksums of all other files
`config.json`          architecture, class names and preprocessing, in timm's layout
`record.json`          the record of the exported cell
`model.safetensors`, `model.onnx`, `model.pt2` or `delta.safetensors`
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from blockwise.backbone.makers.base import ImageSpec
from blockwise.errors import InputError
from blockwise.io.files import read_regular, replacing
from blockwise.results.predictions import checksum
from blockwise.results.record import Record
from blockwise.results.store import CARD

SCHEMA = 1
CONFIG, RECORD = "config.json", "record.json"
FILES = {"timm": "model.safetensors", "onnx": "model.onnx", "torch_export": "model.pt2", "delta": "delta.safetensors"}
KEY = "blockwise"
UNFINISHED = ".unfinished-"
# the metadata in front of a model card
FRONT = re.compile(r"\ufeff?---\r?\n(.*?)^---\r?$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Exported:
    """What is in an export folder.

    Attributes:
        folder: The folder.
        format: `timm`, `onnx`, `torch_export` or `delta`.
        classes: Class names, in the order of the logits.
        images: Size and preprocessing of the images.
        record: The record of the exported cell.
    """

    folder: Path
    format: str
    classes: tuple[str, ...]
    images: ImageSpec
    record: Record

    @property
    def weights(self) -> Path:
        """The file of the network."""
        return self.folder / FILES[self.format]


def write_card(folder: Path, text: str, kind: str, metadata: Mapping[str, Any]) -> None:
    """Write the model card last, with the checksums of all other files in its metadata."""
    files = {name: checksum((folder / name).read_bytes()) for name in (CONFIG, RECORD, FILES[kind])}
    header = {**metadata, KEY: {"schema": SCHEMA, "format": kind, "files": files}}
    with replacing(folder / CARD) as temporary:
        front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
        temporary.write_text(f"---\n{front}---\n\n{text}", encoding="utf-8")


def check_free(folder: Path) -> None:
    """Check that an export may be written to a folder: it is new, empty, or that of an earlier export.

    Raises:
        InputError: It holds something else.
    """
    known = {CARD, CONFIG, RECORD, *FILES.values()}
    in_use = InputError(f"{folder} is in use: give a new folder, or that of an earlier export")
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise in_use
        return
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(UNFINISHED)}
    if names - known:
        raise in_use
    if names:
        try:
            _header(folder)  # a model folder of someone else has files of these names, too
        except InputError as error:
            raise in_use from error


@contextmanager
def replacing_export(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside of it, on the same disk; if the `with` block succeeds, its files take their places.

    The card, which makes the folder an export, is the last one. If the block fails, an earlier export stays as it was.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for left in folder.glob(f"{UNFINISHED}*"):  # by a process that was killed
            shutil.rmtree(left)
        with TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
            yield Path(temporary)
            written = sorted(Path(temporary).iterdir(), key=lambda file: file.name == CARD)
            for file in written:
                file.replace(folder / file.name)
            names = {file.name for file in written}
            for old in folder.iterdir():
                if old.is_file() and old.name not in names:
                    old.unlink()
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def read_export(folder: str | Path) -> Exported:
    """Read and check an export folder.

    Raises:
        InputError: It is none, is of another version, or a file is missing or has changed.
    """
    path = Path(folder).expanduser()
    header = _header(path)
    if header.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {header.get('schema')}, but this version reads {SCHEMA}: export it again")
    kind, files = header.get("format"), header.get("files")
    if (
        not isinstance(kind, str)
        or kind not in FILES
        or not isinstance(files, dict)
        or set(files) != {CONFIG, RECORD, FILES[kind]}
    ):
        raise InputError(f"{path / CARD} does not tell which files the export has: export it again")
    for name, expected in files.items():
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise InputError(f"{path / name} cannot be read ({error.strerror}): export it again") from error
        if checksum(content) != expected:
            raise InputError(f"{path / name} has changed since it was exported: export it again")
    record = Record.from_json(read_regular(path / RECORD), path / RECORD)
    try:
        config = json.loads((path / CONFIG).read_bytes())
        classes, number = tuple(map(str, config["label_names"])), int(config["num_classes"])
        images = _images(config["pretrained_cfg"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path / CONFIG} does not describe a network as timm does: export it again") from error
    if len(classes) != number:
        raise InputError(f"{path / CONFIG} names {len(classes)} classes, but the head has {number}")
    return Exported(path, kind, classes, images, record)


def _header(path: Path) -> dict[str, Any]:
    try:
        text = (path / CARD).read_text(encoding="utf-8", errors="replace")
        header = yaml.safe_load(FRONT.match(text)[1])[KEY]  # type: ignore[index]
    except OSError as error:
        raise InputError(f"{path} is not an export: it has no {CARD} ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not an export of blockwise: {CARD} has no metadata of it") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is not an export of blockwise: {CARD} has no metadata of it")
    return header


def _images(config: Mapping[str, Any]) -> ImageSpec:
    return ImageSpec(
        size=int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
    )
