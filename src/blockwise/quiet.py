"""Silence warnings of libraries that the user can do nothing about, and W&B's reports about itself."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "pooch": logging.WARNING,
    "huggingface_hub": logging.ERROR,  # it warns about every retry when there is no network
}
HINTS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec.*",
    ".*in eval mode at the start.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # our data modules can resume mid-epoch
    ".*`srun` command is available.*",  # `launch` starts the processes, under Slurm too
    r"\s*'hydra/launcher/.*' is validated against ConfigStore",  # intended
)


# unless this variable is false when W&B starts, it sends reports about its own errors and use, and about the system
WANDB_REPORTS = "WANDB_ERROR_REPORTING"


def silence_libraries() -> None:
    """Silence them for the whole process; for the command line."""
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for hint in HINTS:
        warnings.filterwarnings("ignore", hint)
    os.environ.setdefault(WANDB_REPORTS, "false")


@contextmanager
def no_error_reports() -> Iterator[None]:
    """Turn W&B's reports about itself off inside a `with` block."""
    before = os.environ.get(WANDB_REPORTS)
    os.environ.setdefault(WANDB_REPORTS, "false")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(WANDB_REPORTS, None)


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Silence them inside a `with` block, then restore levels, filters and environment; for Python and notebooks."""
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    with warnings.catch_warnings(), no_error_reports():
        silence_libraries()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
