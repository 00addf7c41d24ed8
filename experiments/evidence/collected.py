"""Further figures of the sweeps, one JSON file per kind: computed once per sweep, in any order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evidence.sweeps import asked
from filelock import FileLock


def collect(path: Path, arguments: Sequence[str], compute: Callable[[str, list[str]], Any]) -> None:
    """Add to a file what it lacks of the sweeps that a command line asks for.

    Args:
        path: The file; its keys are names of sweeps.
        arguments: The command line, as that of `sweeps.py`.
        compute: Returns the figures of a sweep, from its name and the overrides of its config.
    """
    for file, key, overrides in asked(arguments):
        if (name := f"{file.stem}/{key}") not in collected(path):
            keep(path, name, compute(name, overrides))


def keep(path: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Add figures to those of a sweep."""
    with FileLock(f"{path}.lock"):  # several of these processes may run
        found = collected(path)
        found[name] = {**found.get(name, {}), **figures}
        path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    Path(f"{path}.lock").unlink(missing_ok=True)


def collected(path: Path) -> dict[str, Any]:
    """Return the figures by the name of the sweep."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
