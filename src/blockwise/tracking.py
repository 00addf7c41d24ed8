"""Watching cells train: every cell has a run of its own with each logger, also when many train side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Literal, Protocol

import hydra
import lightning as L
from hydra.errors import InstantiationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from blockwise.analysis.frame import identity
from blockwise.analysis.summary import Sweep
from blockwise.errors import InputError, Interrupted
from blockwise.module import BlockwiseModule
from blockwise.record import Recorder
from blockwise.results import Metrics, Record, cell_name, sweep_path

# loggers that need a package which only some users have, by the name that they share
EXTRAS = ("wandb", "tensorboard")
# runs that are opened and ended at the same time: a server takes a second for each
AT_ONCE = 8
Status = Literal["finished", "diverged", "interrupted", "failed"]


class CellLog(Protocol):
    """The run of one cell with one logger.

    Attributes:
        next_epoch: The first epoch that the run lacks; not 0 where it continues that of an interrupted training.
    """

    next_epoch: int

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Take in an epoch's metrics, as `val/top1`."""

    def finish(self, status: Status, final: dict[str, float]) -> None:
        """End the run; `final` is what the record says of the best epoch and the test, see `final_metrics`."""


OpenLog = Callable[[Record], CellLog]


def open_loggers(cfg: DictConfig) -> list[OpenLog]:
    """Return what opens a cell's run with each of the loggers that a config names.

    Raises:
        InputError: One of them cannot be used here.
    """
    found = []
    for name, entry in (cfg.get("logger") or {}).items():
        if entry is None:
            continue
        if name in EXTRAS and find_spec(str(name)) is None:
            raise InputError(f"logger={name} needs a package that is not installed: pip install 'blockwise[{name}]'")
        try:
            found.append(hydra.utils.instantiate(entry))
        except InstantiationException as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from error
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise InputError(f"logger={name} cannot be used ({reason}): look at the settings of logger") from error
    return found


class CellTracking(L.Callback):
    """Tells the runs of a module's cells what happens.

    Args:
        loggers: Open a cell's run.
        recorder: Knows what the cells are.
    """

    def __init__(self, loggers: Sequence[OpenLog], recorder: Recorder) -> None:
        self._loggers = loggers
        self._recorder = recorder
        self._logs: list[list[CellLog]] = []

    def __enter__(self) -> CellTracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End the runs of cells that do not end well."""
        if error is not None:
            gave_way = isinstance(error, (Interrupted, KeyboardInterrupt))
            self._finish_all(["interrupted" if gave_way else "failed"] * len(self._logs), [{}] * len(self._logs))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the runs: by now it is known where training goes on from."""
        assert isinstance(pl_module, BlockwiseModule)
        self._tell(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass on the epoch."""
        assert isinstance(pl_module, BlockwiseModule)
        self._tell(pl_module)

    def finish(self, module: BlockwiseModule, records: Sequence[Record], sweep: Sweep | None) -> None:
        """End the runs of cells that are recorded.

        Args:
            module: The cells.
            records: Theirs, in the same order.
            sweep: All that is recorded of the sweep, to compare with.
        """
        self._tell(module)
        self._finish_all([record["status"] for record in records], [final_metrics(r, sweep) for r in records])

    def _tell(self, module: BlockwiseModule) -> None:
        """Bring every run up to date; the first time, open it."""
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
            raise InputError(f"a logger cannot be opened ({reason}): look at the settings of logger") from error

    def _finish_all(self, statuses: Sequence[Any], finals: Sequence[dict[str, float]]) -> None:
        def finish(logs: list[CellLog], status: Any, final: dict[str, float]) -> None:
            for log in logs:
                log.finish(status, final)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(finish, self._logs, statuses, finals))  # a list, so that errors are raised
        self._logs = []


def replay(log: CellLog, history: Sequence[dict[str, Metrics]]) -> None:
    """Tell a run of the epochs that it lacks."""
    while log.next_epoch < len(history):
        row = history[log.next_epoch]
        log.log(log.next_epoch, {f"{split}/{name}": value for split in row for name, value in row[split].items()})
        log.next_epoch += 1


def final_metrics(record: Record, sweep: Sweep | None) -> dict[str, float]:
    """Return what a run ends with: metrics of the best epoch and of the test, costs, and gains over both baselines.

    A gain is the difference of test accuracies to `head` or `full`, each at its best rate, with the same seed.
    """
    costs = {key: record.get(key) for key in ("best_epoch", "epochs", "seconds", "peak_memory_bytes")}
    found = {key: value for key, value in costs.items() if value is not None}
    for split, metrics in (record["metrics"] or {}).items():
        found.update({f"{split}/{name}": value for name, value in (metrics or {}).items()})
    for baseline in ("head", "full"):
        row = sweep.row(baseline) if sweep else None
        if "test/top1" in found and row is not None and record["seed"] in row.seeds:
            found[f"gain/{baseline}"] = found["test/top1"] - row.mean("test", seeds={record["seed"]})
    return found


def describe(record: Record) -> dict[str, Any]:
    """Return what a logger keeps of a cell beside its metrics: what it is, and every setting behind it."""
    layers = {key: record["cell"].get(key) for key in ("first_layer", "last_layer")}
    return {**identity(record), **layers, "settings": record["settings"], "provenance": record["provenance"]}


class LightningLog:
    """A cell's run with one of Lightning's loggers.

    Args:
        record: The cell.
        logger: Makes the logger, of the `name` and `version` of a run.
    """

    def __init__(self, record: Record, *, logger: Callable[..., Logger]) -> None:
        settings = record["settings"]
        self.next_epoch = 0  # what an interrupted run has written is written again
        self._logger = logger(name=f"{sweep_path(settings)}/{settings['scope']}", version=cell_name(settings))
        self._logger.log_hyperparams(describe(record))

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Log and write an epoch."""
        self._logger.log_metrics(metrics, step=epoch)
        self._logger.save()

    def finish(self, status: Status, final: dict[str, float]) -> None:
        """Log what belongs to the best epoch, and close."""
        if "best_epoch" in final:
            best = {key: value for key, value in final.items() if key.startswith(("test/", "gain/"))}
            self._logger.log_metrics(best, step=int(final["best_epoch"]))
        self._logger.finalize("success" if status == "finished" else "failed")
