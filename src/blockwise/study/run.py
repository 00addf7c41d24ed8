"""Config -> study -> records: what one `python train.py` does."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from blockwise.results.record import Record
from blockwise.study.study import Study
from blockwise.training.distributed import rank


def run(cfg: DictConfig, console: Console | None = None) -> list[Record]:
    """Train every cell that a config names and that has no record yet; print the table and draw the picture.

    Returns:
        The records of all these cells; none with `plan=true`, which trains nothing.

    Raises:
        InputError: A setting, the data or the weights are not as they must be; nothing has trained.
    """
    study = Study.from_config(cfg, console)
    if cfg.plan:
        study.plan()
        return []
    records = study.train()
    if rank() == 0:
        study.report()
    return records
