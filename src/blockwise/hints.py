"""Hints of libraries that a user can do nothing about."""

from __future__ import annotations

import logging
import warnings


def silence_hints() -> None:
    """Keep hints off the screen that a user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries without a network
    for hint in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*isinstance.treespec.*",
        ".*in eval mode at the start.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # our batches can be resumed
        ".*`srun` command is available.*",  # several devices are started by `launch`, under Slurm too
        r"\s*'hydra/launcher/.*' is validated against ConfigStore",  # as it should be
    ):
        warnings.filterwarnings("ignore", hint)
