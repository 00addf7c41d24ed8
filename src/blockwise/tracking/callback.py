"""Logging: each cell has its own run in each logger, even if many cells train side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.loggers import Logger

from blockwise.analysis.frame import identity
from blockwise.analysis.summary import Sweep
from blockwise.analysis.uncertainty import confidence
from blockwise.errors import InputError, Interrupted
from blockwise.results.record import SPLITS, Metrics, Record
from blockwise.results.store import cell_name, sweep_path
from blockwise.training.module import BlockwiseModule
from blockwise.training.recorder import Recorder

# number of runs to open or end in parallel, since a server takes about a second for each
AT_ONCE = 8
# states in which a run ends as a success
ENDED = ("finished", "pruned")


class CellLog(Protocol):
    """The run of one cell in one logger.

    Attributes:
        next_epoch: The first epoch that is not logged yet; greater than 0 if an interrupted run continues.
    """

    next_epoch: int

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Log the metrics of an epoch, by names such as `val/top1`."""

    def finish(self, status: str, final: dict[str, float]) -> None:
        """End the run.

        Args:
            status: The record's status, `interrupted` or `failed`.
            final: The summary of the run, from `final_metrics`.
        """


OpenLog = Callable[[Record], CellLog]


class CellTracking(L.Callback):
    """Logs the epochs and the results of a module's cells.

    Args:
        loggers: One function per logger, which opens the run of a cell.
        recorder: Makes the records from which runs are opened.
    """

    def __init__(self, loggers: Sequence[OpenLog], recorder: Recorder) -> None:
        self._loggers = loggers
        self._recorder = recorder
        self._logs: list[list[CellLog]] = []

    def __enter__(self) -> CellTracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End all runs when training fails or is interrupted."""
        if error is not None:
            interrupted = isinstance(error, (Interrupted, KeyboardInterrupt))
            self._finish_all(["interrupted" if interrupted else "failed"] * len(self._logs), [{}] * len(self._logs))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the runs; by now the checkpoint, if any, is loaded."""
        assert isinstance(pl_module, BlockwiseModule)
        self._update(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch."""
        assert isinstance(pl_module, BlockwiseModule)
        self._update(pl_module)

    def finish(self, module: BlockwiseModule, records: Sequence[Record], sweeps: Mapping[str, Sweep | None]) -> None:
        """End the runs of recorded cells.

        Args:
            module: The module that trained the cells.
            records: The cells' records, in the same order.
            sweeps: All records of the sweep by the name of their policy, for the gains over the baselines.
        """
        self._update(module)
        for logs, record in zip(self._logs, records, strict=True):
            sweep = sweeps.get(record.policy)
            if is_chosen(record, sweep):
                for log in logs:
                    if (keep := getattr(log, "keep", None)) is not None:  # not all logs keep weights
                        keep(record)
        self._finish_all(
            [record.status for record in records], [final_metrics(r, sweeps.get(r.policy)) for r in records]
        )

    def _update(self, module: BlockwiseModule) -> None:
        """Log the epochs that are not logged yet; open the runs first if necessary."""
        if self._loggers and not self._logs:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                self._logs = list(pool.map(self._open, self._recorder.records(module)))
        for logs, progress in zip(self._logs, module.progress, strict=False):
            for log in logs:
                replay(log, progress.history)

    def _open(self, record: Record) -> list[CellLog]:
        try:
            return [opened(record) for opened in self._loggers]
        except (OSError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"a logger cannot be opened ({reason}): check the logger settings") from error

    def _finish_all(self, statuses: Sequence[Any], finals: Sequence[dict[str, float]]) -> None:
        def finish(logs: list[CellLog], status: Any, final: dict[str, float]) -> None:
            for log in logs:
                log.finish(status, final)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(finish, self._logs, statuses, finals))  # a list, so that errors are raised
        self._logs = []


def replay(log: CellLog, history: Sequence[dict[str, Metrics]]) -> None:
    """Log the epochs of a history that are not logged yet."""
    while log.next_epoch < len(history):
        row = history[log.next_epoch]
        log.log(log.next_epoch, {f"{split}/{name}": value for split in row for name, value in row[split].items()})
        log.next_epoch += 1


def is_chosen(record: Record, sweep: Sweep | None) -> bool:
    """Return whether a record is that of the best block of its sweep."""
    best = None if sweep is None else sweep.best
    return best is not None and any(record.settings == other.settings for other in best.records)


def final_metrics(record: Record, sweep: Sweep | None) -> dict[str, float]:
    """Return the summary of a run: metrics at the best epoch, costs, gains over both baselines, and how sure it is.

    A gain is the test accuracy minus that of `head` or `full` with the same seed, at the baseline's best learning rate.
    """
    costs = {key: getattr(record, key) for key in ("best_epoch", "epochs", "seconds", "peak_memory_bytes")}
    summary = {key: value for key, value in costs.items() if value is not None}
    for split in SPLITS:
        metrics = getattr(record.metrics, split)
        summary.update({f"{split}/{name}": value for name, value in (metrics or {}).items()})
    for baseline in ("head", "full"):
        row = sweep.row(baseline) if sweep else None
        if "test/top1" in summary and row is not None and record.seed in row.seeds:
            summary[f"gain/{baseline}"] = summary["test/top1"] - row.mean("test", seeds={record.seed})
    return {**summary, **_how_sure(record, sweep)}


def _how_sure(record: Record, sweep: Sweep | None) -> dict[str, float]:
    """Return how likely a block is to be the best one, at the rate that was chosen for it."""
    row = sweep.row(record.cell.scope) if sweep else None
    if sweep is None or row is None or all(record.settings != other.settings for other in row.records):
        return {}
    if (sure := confidence(sweep)) is None:
        return {}
    if (probability := sure.probability.get(row.scope)) is None:
        return {}
    return {"choice/p_best": probability, "choice/may_be_best": float(row.scope in sure.scopes)}


def describe(record: Record) -> dict[str, Any]:
    """Return the config of a run: the cell, all its settings and its provenance."""
    layers = {"first_layer": record.cell.first_layer, "last_layer": record.cell.last_layer}
    return {**identity(record), **layers, "settings": record.settings, "provenance": record.provenance}


class LightningLog:
    """A cell's run in one of Lightning's loggers.

    Args:
        record: The record of the cell.
        logger: Makes the logger, given the `name` and `version` of a run.
    """

    def __init__(self, record: Record, *, logger: Callable[..., Logger]) -> None:
        settings = record.settings
        self.next_epoch = 0  # epochs before an interruption are logged again
        self._logger = logger(name=f"{sweep_path(settings)}/{settings['scope']}", version=cell_name(settings))
        self._logger.log_hyperparams(describe(record))

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Log the metrics of an epoch and flush the logger."""
        self._logger.log_metrics(metrics, step=epoch)
        self._logger.save()

    def finish(self, status: str, final: dict[str, float]) -> None:
        """Log the test metrics, gains and probability at the step of the best epoch, and close the logger."""
        if "best_epoch" in final:
            best = {key: value for key, value in final.items() if key.startswith(("test/", "gain/", "choice/"))}
            self._logger.log_metrics(best, step=int(final["best_epoch"]))
        self._logger.finalize("success" if status in ENDED else "failed")
