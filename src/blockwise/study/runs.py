"""Training cells side by side, and finding their records."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console

from blockwise.analysis.summary import Sweep, sweep_with
from blockwise.backbone.load import Backbone
from blockwise.backbone.stages import StagedBackbone
from blockwise.errors import InputError
from blockwise.fast.memory import allow_tf32, reset_peak_memory
from blockwise.policies import STATIC, Static
from blockwise.recipe.losses import with_class_counts
from blockwise.recipe.parameter_groups import OptimizerFactory
from blockwise.recipe.recipe import Loss, Recipe
from blockwise.results.locks import claim, wait
from blockwise.results.record import Record
from blockwise.results.store import ResultStore, find_records, settings_hash, sweep_hash
from blockwise.search import Exhaustive, Search, stops_cells
from blockwise.study.data import StudyData
from blockwise.study.searching import describe_search
from blockwise.study.settings import describe_policy
from blockwise.study.worker import report_cells
from blockwise.tracking.callback import CellTracking, OpenLog
from blockwise.tracking.progress import ProgressDisplay
from blockwise.training.cells import Cell, cell_key, competitors, saved_key
from blockwise.training.checkpoints import AtomicCheckpointIO, CheckpointCallback, Checkpoints
from blockwise.training.distributed import broadcast, is_distributed, rank
from blockwise.training.module import BlockwiseModule
from blockwise.training.recorder import OUTCOME, Recorder

# seconds
WAIT = 60


class TrainerFactory(Protocol):
    """Makes the trainer of one run."""

    def __call__(self, **options: Any) -> L.Trainer:
        """Return a new trainer; options override its settings."""


@dataclass(kw_only=True)
class CellRuns:
    """Trains cells of one backbone on one data set, and finds their records.

    Attributes:
        backbone: The pretrained network.
        staged: The same network, cut at the partition's boundaries.
        data: The data set.
        optimizer: Makes the optimizer of a cell.
        trainer: Makes the trainer of a run.
        settings: All settings that change the result and that all cells share, including `seed`.
        store: The store of the records.
        loggers: One function per logger, which opens the run of a cell.
        recipe: The training recipe.
        search: Says which scopes train in which order, and which cells stop early.
        checkpoint_minutes: Minutes between checkpoints; None saves only when interrupted.
        keep_bytes: Size of the cache of the frozen stages' output, in bytes: one for validation images, and one for
            training images that are the same in every epoch.
        cells_at_once: Number of cells that train at once on a GPU, as CUDA graphs; 0 trains without graphs.
        tf32: Multiply float32 numbers in TF32 on a GPU.
        console: Console for messages to the user.
    """

    backbone: Backbone
    staged: StagedBackbone
    data: StudyData
    optimizer: OptimizerFactory
    trainer: TrainerFactory
    settings: dict[str, Any]
    store: ResultStore
    loggers: Sequence[OpenLog] = ()
    recipe: Recipe = field(default_factory=Recipe)
    search: Search = field(default_factory=Exhaustive)
    checkpoint_minutes: float | None = 1
    keep_bytes: int = 0
    cells_at_once: int = 4
    tf32: bool = False
    console: Console = field(default_factory=Console)

    @property
    def title(self) -> str:
        """The study in one line: `backbone on data`."""
        return f"{self.backbone.name} on {self.data.name}"

    def headline(self, cells: int, recorded: int) -> str:
        """Return what a run says first: how many cells it has, and how many of them are recorded."""
        partition = self.staged.partition
        return (
            f"{self.title}, partition {partition.name} of {len(partition)} blocks: "
            f"{cells} cells, {recorded} of them already recorded"
        )

    def cell_settings(self, cell: Cell) -> dict[str, Any]:
        """Return all settings that change a cell's result."""
        own = {"scope": cell.scope.name, "blocks": list(cell.scope.blocks), "lr": cell.lr}
        return {**self.settings, **self._policy_settings(cell.policy), **own}

    def _policy_settings(self, policy: str) -> dict[str, Any]:
        """Return the settings of a policy; none of `static`, which records of earlier versions do not mention."""
        own = self.recipe.policy(policy)
        return {} if isinstance(own, Static) else {"policy": describe_policy(policy, own)}

    def missing(self, cells: list[Cell]) -> list[Cell]:
        """Return the cells that a run would train: those without a record.

        Which cells a search stops depends on all of them, so all train again if one has no record.
        """
        missing = [cell for cell in cells if not self._is_recorded(cell, cells)]
        return cells if missing and stops_cells(self.search) else missing

    def _is_recorded(self, cell: Cell, cells: list[Cell]) -> bool:
        """Return whether a cell has a record that need not be replaced.

        A cell that was stopped by another search, or among other cells, goes on.
        """
        record = self.store.find(self.cell_settings(cell))
        if record is None or record.status != "pruned":
            return record is not None
        # records of earlier versions do not say what competed
        among = _search_of(record).get("competitors", competitors(cell, cells))
        return self._stopped(record) and among == competitors(cell, cells)

    def _stopped(self, record: Record) -> bool:
        """Return whether this search has stopped the cell of a record."""
        settings = {key: value for key, value in _search_of(record).items() if key not in OUTCOME}
        return record.status == "pruned" and self.searched is not None and settings == self.searched

    @cached_property
    def searched(self) -> dict[str, Any] | None:
        """Name and settings of the search; None if it trains everything to its end."""
        return describe_search(self.search)

    def sweep(self, policy: str = STATIC, *, all_seeds: bool = False) -> Sweep | None:
        """Return the records of this sweep under a policy; None if there are none."""
        records = find_records(self.store.sweep_folder(self.settings))
        seed = self.settings["seed"]
        wanted = [record for record in records if all_seeds or record.seed == seed]
        return sweep_with(wanted, sweep_hash({**self.settings, **self._policy_settings(policy)}))

    def train_cells(self, cells: list[Cell], *, retrain: bool) -> dict[str, Record]:
        """Train the cells without a record, and return the records of all, by the cells' names."""
        # other processes must not read the records at another time
        missing = broadcast(cells if retrain else self.missing(cells))
        if cells:
            self.console.print(self.headline(len(cells), len(cells) - len(missing)), highlight=False)
        report_cells(cell.key for cell in missing)
        # if the network cannot be cut, each cell needs a copy of the whole network: train one at a time
        for group in [[cell] for cell in missing] if self.staged.whole else [missing]:
            self._train_or_wait(group, retrain=retrain)
        found = {cell.key: self.store.find(self.cell_settings(cell)) for cell in cells}
        return {key: record for key, record in found.items() if record is not None}

    def _train_or_wait(self, cells: list[Cell], *, retrain: bool) -> None:
        """Train the cells that no other process is training, then wait for the others."""
        first = rank() == 0  # in distributed training, rank 0 decides for all processes
        while cells:
            candidates = cells if first else []
            with claim([self.store.lock(self.cell_settings(cell)) for cell in candidates]) as claimed:
                taken = [cell for cell, locked in zip(candidates, claimed, strict=True) if not locked]
                free = [cell for cell in candidates if cell not in taken]
                if taken and stops_cells(self.search):  # the cells of a search compete: all of them, or none
                    free = []
                # another process may just have recorded a cell and released its lock
                mine = broadcast(free if retrain else self.missing(free))
                if mine:
                    self._train_side_by_side(mine)
            left = [cell for cell in cells if cell not in mine]
            cells = broadcast(left if retrain else self.missing(left))
            if cells:
                self.console.print(f"waiting for another process, which is training {len(cells)} of these cells")
                lock = self.store.lock(self.cell_settings(taken[0] if taken else cells[0]))
                # the others hear from the first again before the process group's timeout
                while not broadcast(first and wait(lock, WAIT if is_distributed() else -1)):
                    pass

    def _train_side_by_side(self, cells: list[Cell]) -> None:
        """Train cells side by side; if the memory of the GPU runs out, one half of them after the other.

        Raises:
            InputError: Memory runs out with a single cell, or on several devices.
        """
        try:
            with allow_tf32(self.tf32):
                self._train_together(cells)
            return
        except torch.OutOfMemoryError as error:
            if len(cells) == 1 or is_distributed() or stops_cells(self.search):
                some, advice = f"{len(cells)} cells", f"sweeper.cells_per_job={len(cells) // 2} with -m"
                if len(cells) == 1:
                    some, advice = "1 cell", "smaller images"
                elif stops_cells(self.search):
                    advice = "search=exhaustive, which trains a half at a time"
                raise InputError(
                    f"the GPU's memory ran out with {some}: choose a smaller data.batch_size or {advice}"
                ) from error
        # outside of `except`: the error holds on to what filled the memory
        gc.collect()
        torch.cuda.empty_cache()
        half = (len(cells) + 1) // 2
        self.console.print(
            f"the GPU's memory ran out with {len(cells)} cells side by side: training {half} at a time "
            f"(with -m, sweeper.cells_per_job={half} avoids the attempt)",
            highlight=False,
        )
        for part in (cells[:half], cells[half:]):
            self._train_side_by_side(part)

    def _train_together(self, cells: list[Cell]) -> None:
        reset_peak_memory()
        self.data.prepare(self.console)
        module = self.module(cells, replace(self.recipe, loss=self.loss()))
        checkpoints = Checkpoints(self.store.checkpoints(self.settings), self.searched)
        checkpoint = broadcast(checkpoints.find(cells))
        if checkpoint:
            self.console.print("resuming from the checkpoint of an interrupted run")
        every = None if self.checkpoint_minutes is None else 60 * self.checkpoint_minutes
        saving = CheckpointCallback(checkpoints.path(cells), every, between_batches=self.data.ours)
        recorder = Recorder(self.backbone, self.data.entry, self.data.classes, self.cell_settings, self.searched)
        with CellTracking(self.loggers, recorder) as tracking:
            with ProgressDisplay(self.console, self.title) as display:
                callbacks = [*self.data.callbacks(), display, tracking, saving]
                trainer = self.trainer(logger=False, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
                call(trainer, trainer.fit, module, datamodule=self.data.module, ckpt_path=checkpoint)
                if any(progress.status in ("running", "stopped") for progress in module.progress):
                    call(trainer, trainer.test, module, datamodule=self.data.module, verbose=False)
            _check_outcome(module)
            if rank() == 0:
                records = recorder.save(self.store, module)
                checkpoints.drop(*self._recorded_keys())
                if self.loggers:
                    recorded = {policy: self.sweep(policy) for policy in self._policies()}
                    tracking.finish(module, records, recorded)

    def loss(self) -> Loss:
        """Return the training loss, with class weights as numbers; the images have been read."""
        counts = self.data.class_counts()
        return self.recipe.loss if counts is None else with_class_counts(self.recipe.loss, counts)

    def _recorded_keys(self) -> tuple[set[str], set[str]]:
        """Return the keys of the cells of this sweep and seed that have ended, and that this search stopped."""
        recorded = [sweep for policy in self._policies() if (sweep := self.sweep(policy))]
        records = [record for sweep in recorded for record in sweep.records]
        ended = {checkpoint_key(record) for record in records if record.status != "pruned"}
        return ended, {checkpoint_key(record) for record in records if self._stopped(record)}

    def _policies(self) -> set[str]:
        """Return the names of all policies of cells; `head` is always static."""
        return {STATIC, *self.recipe.policies}

    def module(self, cells: list[Cell], recipe: Recipe, *, noise: bool = False) -> BlockwiseModule:
        """Return a module that trains cells, on the images of the study or on noise."""
        return BlockwiseModule(
            self.staged,
            cells,
            num_classes=len(self.data.classes),
            optimizer=self.optimizer,
            recipe=recipe,
            head=self.backbone.head,
            seed=self.settings["seed"],
            # batches of a data module of your own may differ from epoch to epoch, also those that validate
            keep_bytes=self.keep_bytes if self.data.ours else 0,
            positions=(lambda _epoch: None) if noise else self.data.train_positions,
            folds=self.data.folds,
            search=self.search,
            lanes=self.cells_at_once,
            tell=partial(self.console.print, highlight=False),
        )


def _search_of(record: Record) -> dict[str, Any]:
    """Return what a record says of the search that stopped its cell."""
    search = record.provenance.get("search")
    return search if isinstance(search, dict) else {}


def checkpoint_key(record: Record) -> str:
    """Return the name of a recorded cell in checkpoints."""
    policy = {"policy": record.settings["policy"]} if "policy" in record.settings else {}
    key = cell_key(record.cell.scope, record.lr, record.policy)
    return saved_key(key, record.cell.blocks, settings_hash(policy) if policy else "")


def call(trainer: L.Trainer, entry: Callable[..., Any], module: BlockwiseModule, **options: Any) -> None:
    """Call an entry point of a trainer, such as `fit`.

    Raises:
        InputError: Lightning refuses its settings.
    """
    try:
        entry(module, **options)
    except MisconfigurationException as error:
        raise InputError(f"Lightning's trainer refuses its settings: {error}") from error
    except SystemExit:
        # Lightning turns a second Ctrl-C into an exit; raise KeyboardInterrupt, so that callers can report it
        if trainer.interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise


def _check_outcome(module: BlockwiseModule) -> None:
    """Check that every cell was validated and tested.

    Raises:
        InputError: A cell was not, since a split had no batches.
    """
    for cell, progress in zip(module.cells, module.progress, strict=True):
        if progress.status not in ("diverged", "pruned") and (progress.best is None or progress.test is None):
            missing = "training and validation" if progress.best is None else "test"
            raise InputError(f"{cell.scope.name} has no result: there were no batches for {missing}")
