"""Reports from the process of a job to the multirun that started it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# environment variable with the folder of a job
FOLDER = "BLOCKWISE_JOB_FOLDER"
CELLS = "cells.json"
# beside the folders of the jobs: which libraries' weights cannot be downloaded here
UNREACHABLE = "unreachable"
PLAN = "plan.json"


def report_cells(missing: Iterable[str]) -> None:
    """Write the cells without a record to this job's folder, for the failure summary; outside a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / CELLS).write_text(json.dumps(list(missing)), encoding="utf-8")


def report_plan(plan: dict[str, Any]) -> None:
    """Write the plan to this job's folder, for the total over all jobs; outside a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / PLAN).write_text(json.dumps(plan), encoding="utf-8")


def report_unreachable(source: str, reason: str) -> None:
    """Tell later jobs of this multirun that a library's weights cannot be downloaded; outside a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        Path(folder).with_name(f"{UNREACHABLE}-{source}").write_text(reason, encoding="utf-8")


def known_unreachable(source: str) -> str | None:
    """Return why an earlier job of this multirun could not download weights of a library; None if none failed."""
    if folder := os.environ.get(FOLDER):
        path = Path(folder).with_name(f"{UNREACHABLE}-{source}")
        return path.read_text(encoding="utf-8") if path.is_file() else None
    return None


def end_with_parent() -> None:
    """Make Linux send SIGTERM to this process when its parent ends, even if the parent is killed by SIGKILL."""
    if FOLDER not in os.environ or sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
