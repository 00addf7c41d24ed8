"""Keeping hints of libraries off the screen that a user can do nothing about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "huggingface_hub": logging.ERROR,  # its retries without a network
}
HINTS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec.*",
    ".*in eval mode at the start.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # our batches can be resumed
    ".*`srun` command is available.*",  # `launch` starts several processes, under Slurm too
    r"\s*'hydra/launcher/.*' is validated against ConfigStore",  # as it should be
)


def silence_libraries() -> None:
    """Silence the hints for the whole process; for the command line."""
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for hint in HINTS:
        warnings.filterwarnings("ignore", hint)


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Silence the hints within the block, and restore levels and filters behind it; for Python and notebooks."""
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    with warnings.catch_warnings():
        silence_libraries()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
