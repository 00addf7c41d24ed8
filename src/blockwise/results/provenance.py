"""The provenance of a record: commit, versions, command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# environment variable with the command that trains only this job of a multirun
COMMAND = "BLOCKWISE_JOB_COMMAND"
PACKAGES = ("blockwise", "torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy", "pillow")


def provenance() -> dict[str, Any]:
    """Return commit and dirty flag of the running checkout (None if there is none), package versions and command."""
    here = Path(__file__).parent
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is not None
    status = _git(here, "status", "--porcelain", "--untracked-files=no") if tracked else None
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git(here, "rev-parse", "HEAD") if tracked else None,
        "dirty": bool(status) if status is not None else None,
        "versions": versions(),
        "command": os.environ.get(COMMAND) or shlex.join(sys.argv),
    }


@cache
def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}}


@cache
def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # status would otherwise lock the index, in the way of the user's own git commands
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
