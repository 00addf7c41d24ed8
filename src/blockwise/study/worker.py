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
PLAN = "plan.json"


def report_cells(missing: Iterable[str]) -> None:
    """Write the cells without a record to this job's folder, for the failure summary; outside a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / CELLS).write_text(json.dumps(list(missing)))


def report_plan(plan: dict[str, Any]) -> None:
    """Write the plan to this job's folder, for the total over all jobs; outside a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / PLAN).write_text(json.dumps(plan))


def end_with_parent() -> None:
    """Make Linux send SIGTERM to this process when its parent ends, even if the parent is killed by SIGKILL."""
    if FOLDER not in os.environ or sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
