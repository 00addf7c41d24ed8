"""Runs that are complete, so that the same command again says so without loading network and images.

When all cells of a run have a record, a small file in the results folder lists these records. Its name is a hash of the
run's settings, of the versions of the packages, and of name, size and time of each file that the run reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blockwise.errors import InputError
from blockwise.io import origins
from blockwise.io.files import read_regular, replacing
from blockwise.results.provenance import versions
from blockwise.results.record import Record
from blockwise.results.store import read_record

FOLDER = ".finished"
# increase it when the same settings lead to other cells, as when partitions began to follow the flow of data, or splits
# the groups
RULES = 3
# settings that change neither a record nor which records there are
NO_EFFECT = ("plan", "checkpoint", "cache", "logger", "sweeper")
# data sets whose images are in places that a config does not name
ELSEWHERE = ("blockwise.data.sources.table.", "blockwise.data.sources.huggingface.")
# classes whose code does not change between runs; of others, this cannot be known
KNOWN = ("blockwise.", "torch.", "torchvision.", "lightning.", "hydra.")


@dataclass(frozen=True)
class Finished:
    """A run without anything left to train.

    Attributes:
        headline: What the run says first.
        records: The records of all its cells.
    """

    headline: str
    records: list[Record]


def run_key(cfg: Mapping[str, Any]) -> str | None:
    """Return the hash of a run; None if it uses code of your own, files that are missing, or files unknown here.

    Args:
        cfg: The composed config as plain data.
    """
    if not all(target.startswith(KNOWN) for target in _targets(cfg)):
        return None
    sources = list(_targets(cfg["data"].get("source")))
    if any(not source.startswith("blockwise.") or source.startswith(ELSEWHERE) for source in sources):
        return None
    settings = {key: value for key, value in cfg.items() if key not in NO_EFFECT}
    try:
        parts = [RULES, settings, versions(), list(_files(cfg))]
    except (OSError, ImportError, ValueError):
        return None
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def mark_finished(cfg: Mapping[str, Any], key: str, headline: str, records: Sequence[Record]) -> None:
    """Note that a run has a record of each cell; `key` is from before it trained."""
    results = Path(cfg["results_dir"]).expanduser()
    paths = [str(Path(record.folder or "", "record.json").relative_to(results)) for record in records]
    (results / FOLDER).mkdir(parents=True, exist_ok=True)
    with replacing(results / FOLDER / f"{key}.json") as temporary:
        temporary.write_text(json.dumps({"headline": headline, "records": paths}), encoding="utf-8")


def recall_finished(cfg: Mapping[str, Any]) -> Finished | None:
    """Return the run with these settings if it has finished before and all its records are still there."""
    results = Path(str(cfg["results_dir"])).expanduser()
    try:
        if not (results / FOLDER).is_dir() or (key := run_key(cfg)) is None:
            return None
        kept = json.loads(read_regular(results / FOLDER / f"{key}.json"))
        return Finished(str(kept["headline"]), [read_record(results / path) for path in kept["records"]])
    except (OSError, InputError, ValueError, KeyError, TypeError):  # not finished, or a record is gone or damaged
        return None


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from [str(value)] if key == "_target_" else _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _files(cfg: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of each file that a run reads.

    Raises:
        OSError: One is missing.
        ImportError: The package with the weights is missing.
    """
    for path in _paths(cfg):
        if path.is_dir():
            for parent, folders, names in os.walk(path, followlinks=True):
                folders[:] = sorted(name for name in folders if name[0] != "." and not _leads_up(Path(parent, name)))
                here = Path(parent)  # parsed once: there may be 100,000 images
                for name in sorted(names):
                    yield _state(here / name)
        else:
            yield _state(path)


def _paths(cfg: Mapping[str, Any]) -> Iterator[Path]:
    model, data = cfg["model"], cfg["data"]
    roots, names = data.get("root"), data.get("classes")
    for path in [*(roots if isinstance(roots, list) else [roots]), names if isinstance(names, str) else None]:
        if path:
            yield Path(path).expanduser().resolve()
    if checkpoint := model.get("checkpoint"):
        yield Path(checkpoint).expanduser().resolve()
    elif package := model.get("package"):
        name, _, file = package.partition("/")
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(name)
        yield Path(spec.origin).parent / file
    yield from _origin(str(model.get("architecture") or model.get("name")))


def _origin(name: str) -> Iterator[Path]:
    """Yield the files of a network with a config of its own; for one of the hub, those of its commit in the cache.

    Raises:
        OSError: It is not on this machine.
    """
    if name.startswith(origins.FOLDER):
        yield from sorted(path for path in origins.folder(name).iterdir() if path.is_file())
    elif name.startswith(origins.HUB):
        from huggingface_hub import try_to_load_from_cache

        repository, revision = origins.repository(name)
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
        if not isinstance(found, str):
            raise FileNotFoundError(name)
        yield from sorted(Path(found).parent.iterdir())


def _state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return os.fsencode(path).decode("utf-8", "backslashreplace"), state.st_size, state.st_mtime_ns


def _leads_up(folder: Path) -> bool:
    """Return whether a folder is a link to one that contains it, where walking would never end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
