"""The folder of an export: what it holds, and checks of what it holds.

`README.md`            the model card; its metadata have the format and the checksums of all other files
`config.json`          architecture, class names and preprocessing, in timm's layout
`record.json`          the record of the exported cell
`model.safetensors`, `model.onnx`, `model.pt2` or `delta.safetensors`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from blockwise.backbone.makers.base import ImageSpec
from blockwise.errors import InputError
from blockwise.io.files import read_regular, replacing
from blockwise.results.predictions import checksum
from blockwise.results.record import Record

SCHEMA = 1
CARD, CONFIG, RECORD = "README.md", "config.json", "record.json"
FILES = {"timm": "model.safetensors", "onnx": "model.onnx", "torch_export": "model.pt2", "delta": "delta.safetensors"}
KEY = "blockwise"


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
    if folder.exists() and not (folder.is_dir() and {entry.name for entry in folder.iterdir()} <= known):
        raise InputError(f"{folder} is in use: give a new folder, or that of an earlier export")


def replace_export(folder: Path, new: Path) -> None:
    """Move a new export to a folder, in place of an earlier one. The card, which makes it an export, comes last."""
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.iterdir(), key=lambda file: file.name != CARD):
        old.unlink()
    for file in sorted(new.iterdir(), key=lambda file: file.name == CARD):
        file.replace(folder / file.name)


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
    if kind not in FILES or not isinstance(files, dict) or set(files) != {CONFIG, RECORD, FILES[kind]}:
        raise InputError(f"{path / CARD} does not tell which files the export has: export it again")
    for name, expected in files.items():
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise InputError(f"{path / name} cannot be read ({error.strerror}): export it again") from error
        if checksum(content) != expected:
            raise InputError(f"{path / name} has changed since it was exported: export it again")
    config = json.loads((path / CONFIG).read_bytes())
    record = Record.from_json(read_regular(path / RECORD), path / RECORD)
    classes = tuple(map(str, config["label_names"]))
    if len(classes) != config["num_classes"]:
        raise InputError(f"{path / CONFIG} names {len(classes)} classes, but the head has {config['num_classes']}")
    return Exported(path, kind, classes, _images(config["pretrained_cfg"]), record)


def _header(path: Path) -> dict[str, Any]:
    try:
        text = (path / CARD).read_text(encoding="utf-8")
        header = yaml.safe_load(text.split("---\n")[1])[KEY]
    except OSError as error:
        raise InputError(f"{path} is no export: it has no {CARD} ({error.strerror})") from error
    except (IndexError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} is no export of blockwise: {CARD} has no metadata of it") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is no export of blockwise: {CARD} has no metadata of it")
    return header


def _images(config: Mapping[str, Any]) -> ImageSpec:
    return ImageSpec(
        size=int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
    )
