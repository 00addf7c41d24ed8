"""The process of one job of a multirun: what it reports to the multirun that started it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# the environment variable in which a job finds its folder
FOLDER = "BLOCKWISE_JOB_FOLDER"
CELLS = "cells.json"
PLAN = "plan.json"


def report_cells(missing: Iterable[str]) -> None:
    """Write the cells that this job has yet to record, for the summary of failures; outside of a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / CELLS).write_text(json.dumps(list(missing)))


def report_plan(plan: dict[str, Any]) -> None:
    """Write the plan of this job, for the sum over all jobs; outside of a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / PLAN).write_text(json.dumps(plan))


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when its parent ends, also by `kill -9`; on Linux only."""
    if FOLDER not in os.environ or sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
