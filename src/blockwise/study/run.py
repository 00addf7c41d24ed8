"""One run of `python train.py`: build a study from a config, train it, report its results."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from blockwise.config.compose import plain
from blockwise.errors import TooFewBlocksError
from blockwise.results.finished import mark_finished, run_key
from blockwise.results.record import Record
from blockwise.search import stops_cells
from blockwise.study.study import Study
from blockwise.training.distributed import rank


def run(cfg: DictConfig, console: Console | None = None) -> list[Record]:
    """Train the cells of a config that have no record; print the table of the sweep and save its plot.

    Returns:
        The records of all cells of the config; none with `plan=true`, which trains nothing.

    Raises:
        InputError: A setting, the data or the weights are invalid.
    """
    settings = plain(cfg)
    key = run_key(settings)
    study = Study.from_config(cfg, console)
    if cfg.plan:
        study.plan()
        return []
    try:
        records = study.train()
    except TooFewBlocksError:
        if rank() == 0:
            study.report()
        raise
    if rank() == 0:
        cells = study.cells()
        # which blocks are in `top3`, and which cells a search has stopped, depends on records of other runs as well
        alone = all(cell.scope.top is None for cell in cells) and not stops_cells(study.search)
        if key is not None and len(records) == len(cells) and alone:
            mark_finished(settings, key, study.headline(len(records), len(records)), records)
        study.report()
    return records
