"""A study: one backbone on one data set, from cells to records.

study = Study.from_config(cfg)     as in `python train.py`; `train_scopes` builds a study from Python objects
study.plan()                       prints the cells and their estimated cost
records = study.train()            trains the cells without a record, and returns the records of all cells
"""

from __future__ import annotations

import gc
import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from rich.console import Console

from blockwise.analysis.figures import accuracy_by_block
from blockwise.analysis.summary import Sweep, sweeps
from blockwise.analysis.sweep_table import print_table, sweep_table
from blockwise.backbone.flops import cell_flops
from blockwise.backbone.heads import new_head
from blockwise.backbone.load import Backbone
from blockwise.backbone.stages import StagedBackbone
from blockwise.config.checks import as_list, check_config
from blockwise.config.compose import plain
from blockwise.errors import InputError
from blockwise.fast.memory import allow_tf32
from blockwise.policies import STATIC, Phase, Policy, Static, check_policy, phases
from blockwise.ranking import FIRST_LOSS
from blockwise.recipe.build import make_recipe
from blockwise.recipe.losses import check_loss, with_class_counts
from blockwise.recipe.parameter_groups import OptimizerFactory
from blockwise.recipe.recipe import Recipe
from blockwise.results.locks import claim, wait
from blockwise.results.record import Record
from blockwise.results.store import ResultStore, find_records, settings_hash, sweep_hash
from blockwise.search import Exhaustive, Search
from blockwise.study import prepare
from blockwise.study.data import StudyData
from blockwise.study.plan import CellPlan, Costs, Stopwatch, describe, measure, show
from blockwise.study.searching import (
    StudyTrials,
    check_top,
    describe_search,
    expected_share,
    in_step,
    make_search,
    rank_blocks,
    stops_cells,
)
from blockwise.study.settings import config_settings, describe_policy
from blockwise.study.worker import report_cells
from blockwise.tracking.callback import CellTracking, OpenLog
from blockwise.tracking.progress import ProgressDisplay
from blockwise.training.cells import Cell, cell_key, cell_names, saved_key
from blockwise.training.checkpoints import AtomicCheckpointIO, CheckpointCallback, Checkpoints
from blockwise.training.distributed import broadcast, init_process_group, is_distributed, rank
from blockwise.training.module import BlockwiseModule
from blockwise.training.recorder import COSTS, Recorder
from blockwise.training.scopes import Scope, parse_scopes
from blockwise.training.trainable import check_scope, num_trainable


class TrainerFactory(Protocol):
    """Makes the trainer of one run."""

    def __call__(self, **options: Any) -> L.Trainer:
        """Return a new trainer; options override its settings."""


@dataclass
class Study:
    """One backbone on one data set, ready to train cells.

    Attributes:
        backbone: The pretrained network.
        staged: The same network, cut at the partition's boundaries.
        data: The data set.
        scopes: The scopes to train.
        rates: Learning rates; every scope is trained at each of them.
        optimizer: Makes the optimizer of a cell.
        trainer: Makes the trainer of a run.
        settings: All settings that change the result and that all cells share, including `seed`.
        store: The store of the records.
        loggers: One function per logger, which opens the run of a cell.
        recipe: The training recipe.
        search: Says which scopes train in which order, and which cells stop early.
        checkpoint_minutes: Minutes between checkpoints; None saves only when interrupted.
        keep_bytes: Size of the cache of the frozen stages' output on validation images, in bytes.
        cells_at_once: Number of cells that train at once on a GPU, as CUDA graphs; 0 trains without graphs.
        tf32: Multiply float32 numbers in TF32 on a GPU.
        console: Console for messages to the user.
    """

    backbone: Backbone
    staged: StagedBackbone
    data: StudyData
    scopes: Sequence[Scope]
    rates: Sequence[float]
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
    _rankings: dict[str, Mapping[str, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that every cell has something to train, now or when its blocks are chosen.

        Raises:
            InputError: There are too few single blocks for a `top` scope; or a scope, a policy or the warm-up does not
                fit.
        """
        epochs = int(self.settings["trainer"]["max_epochs"])
        for scope in self.scopes:
            check_scope(scope, self.staged.partition, self.backbone.network, self.backbone.name)
            for name, policy in self.recipe.policies.items():
                # the blocks of a `top` scope are not known yet, but their number is
                check_policy(name, policy, scope.blocks or tuple(range(scope.top or 0)), epochs)
                self._tell_what_stays(scope, name, policy, epochs)
        classes = len(self.data.classes)
        check_loss(with_class_counts(self.recipe.loss, [1] * classes), classes, mixed=self.data.mixed)
        if self.recipe.scheduler is not None:
            self.recipe.scheduler.check(self.optimizer, self.rates, epochs, self.data.batches()["train"])
        if self.staged.whole and stops_cells(self.search):
            name = (describe_search(self.search) or {})["name"]
            raise InputError(
                f"search={name} compares cells that train side by side, but those of {self.backbone.name} train one "
                "after another: choose search=exhaustive, topdown, ranked or greedy"
            )
        top_scopes = [scope for scope in self.scopes if scope.top is not None]
        if not top_scopes:
            return
        check_top(self.search, max(scope.top or 0 for scope in top_scopes))
        own = {scope.name for scope in self.scopes if scope.name.isdigit()}
        single = min((own | self._single_blocks(policy) for policy in self.recipe.policies), key=len)
        for scope in top_scopes:
            if len(single) < (scope.top or 0):
                raise InputError(
                    f"block={scope.name} needs {scope.top} single blocks to choose from, but this sweep has "
                    f"{len(single)}: train more single blocks first, or in the same run: 'block=[all,{scope.name}]'"
                )

    def _tell_what_stays(self, scope: Scope, name: str, policy: Policy, epochs: int) -> None:
        reached = {block for phase in phases(policy, scope.blocks, epochs) for block in phase.blocks}
        if len(reached) < len(scope.blocks):
            self.console.print(
                f"policy={name} reaches {len(reached)} of the {len(scope.blocks)} blocks of {scope.name} in {epochs} "
                "epochs",
                highlight=False,
            )

    @classmethod
    def from_config(cls, cfg: DictConfig, console: Console | None = None) -> Study:
        """Build the study of a composed config; images are not decoded yet.

        Raises:
            InputError: A setting, the data or the weights are invalid.
        """
        console = console or Console(markup=False, quiet=rank() > 0)
        settings = plain(cfg)
        check_config(settings)
        trainer = prepare.make_trainer(cfg, logger=False)
        init_process_group(trainer.strategy.root_device)
        prepare.hint_at_precision(console, trainer)
        optimizer = prepare.make_optimizer(cfg)
        recipe = make_recipe(settings)
        search = make_search(settings["search"])
        loggers = prepare.open_loggers(cfg) if rank() == 0 and not cfg.plan else []
        store = ResultStore(cfg.results_dir)
        # what can be checked on this machine comes before a download
        data = prepare.make_data(cfg, prepare.make_images(cfg))
        prepare.check_before_download(cfg)
        console.print(f"loading {cfg.model.name}", style="dim", highlight=False)  # a download may take minutes
        backbone = prepare.make_backbone(cfg)
        partition = prepare.make_partition(cfg, backbone)
        last = settings["search"].get("then")
        wanted = settings["block"] if last is None else [*as_list(settings["block"]), *as_list(last)]
        scopes = parse_scopes(wanted, len(partition), backbone.name)
        return cls(
            backbone=backbone,
            staged=prepare.make_stages(backbone, partition, console),
            data=data,
            scopes=scopes,
            rates=[float(rate) for rate in as_list(settings["optimizer"]["lr"])],
            optimizer=optimizer,
            trainer=partial(prepare.make_trainer, cfg),
            settings=config_settings(settings, backbone, data, partition),
            store=store,
            loggers=loggers,
            recipe=recipe,
            search=search,
            checkpoint_minutes=cfg.checkpoint.every_minutes,
            keep_bytes=int(1e9 * cfg.cache.activations_gb),
            cells_at_once=cfg.gpu.cells_at_once,
            tf32=bool(cfg.gpu.tf32),
            console=console,
        )

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

    def cells(self, scopes: Iterable[Scope] | None = None, policies: Iterable[str] | None = None) -> list[Cell]:
        """Return the cells of the given scopes, or of all scopes: each at each learning rate under each policy.

        `head` has no blocks, so it is the same under each policy and trains once.
        """
        cells = [
            self._cell(scope, rate, policy if scope.blocks or scope.top else STATIC)
            for policy in (self.recipe.policies if policies is None else policies)
            for scope in (self.scopes if scopes is None else scopes)
            for rate in self.rates
        ]
        return list(dict.fromkeys(cells))

    def _cell(self, scope: Scope, rate: float, policy: str) -> Cell:
        return Cell(scope, rate, policy, settings_hash(settings) if (settings := self._policy_settings(policy)) else "")

    def is_recorded(self, cell: Cell) -> bool:
        """Return whether a cell has a record that need not be replaced: a cell stopped by another search goes on."""
        record = self.store.find(self.cell_settings(cell))
        if record is None or record.status != "pruned":
            return record is not None
        return self._searched is not None and _search_of(record) == self._searched

    @cached_property
    def _searched(self) -> dict[str, Any] | None:
        return describe_search(self.search)

    def sweep(self, policy: str = STATIC, *, all_seeds: bool = False) -> Sweep | None:
        """Return the records of this sweep under a policy; None if there are none."""
        records = find_records(self.store.sweep_folder(self.settings))
        seed = self.settings["seed"]
        recorded = sweeps(record for record in records if all_seeds or record.seed == seed)
        key = sweep_hash({**self.settings, **self._policy_settings(policy)})
        return next((sweep for sweep in recorded if sweep.key == key), None)

    def train(self, *, retrain: bool = False) -> list[Record]:
        """Train the cells without a record, and return the records of all cells.

        Cells train side by side. If another process trains a cell, this one waits for it. Interrupted training resumes
        from its checkpoint.

        Args:
            retrain: Also train cells that have a record; the new record replaces the old one.

        Raises:
            InputError: Images cannot be read, or Lightning refuses the settings.
            Interrupted: A signal interrupted training; a checkpoint is saved.
        """
        self.data.tell(self.console)
        single = [scope.name for scope in self.scopes if scope.top is None]
        trials = {p: StudyTrials(partial(self.sweep, p), self.ranking) for p in self.recipe.policies}
        rounds = {policy: self.search.rounds(single, own) for policy, own in trials.items()}
        records: dict[str, Record] = {}
        for asked in in_step(rounds) if single else ():
            cells = [cell for p, names in asked.items() for cell in self.cells(self._scopes(names), [p])]
            records |= self._train(list(dict.fromkeys(cells)), retrain=retrain)
        for scope in (scope for scope in self.scopes if scope.top is not None):
            for policy in self.recipe.policies:
                resolved = scope.resolve(self._best_blocks(policy, scope.top or 0))
                records |= self._train(self.cells([resolved], [policy]), retrain=retrain)
        return list(records.values())

    def _scopes(self, names: Sequence[str]) -> list[Scope]:
        """Return the scopes that a search names."""
        known = {scope.name: scope for scope in self.scopes}
        new = [name for name in names if name not in known]
        known |= {s.name: s for s in parse_scopes(new, len(self.staged.partition), self.backbone.name)} if new else {}
        return [known[name] for name in names]

    def _best_blocks(self, policy: str, top: int) -> list[int]:
        """Return the best single blocks.

        Raises:
            InputError: Too few of them have trained to their end.
        """
        sweep = self.sweep(policy)
        best = [row.blocks[0] for row in sweep.single_blocks] if sweep else []
        if len(best) < top:
            raise InputError(
                f"block=top{top} needs {top} single blocks that have trained to their end, but this sweep has "
                f"{len(best)}: the search stopped the others"
            )
        return best[:top]

    def ranking(self, score: str) -> Mapping[str, float]:
        """Return a score of each single block before any training, higher is better; see `blockwise.ranking`."""
        if score not in self._rankings:
            self._rankings |= self.rankings([score])
        return self._rankings[score]

    def rankings(self, scores: Sequence[str]) -> dict[str, Mapping[str, float]]:
        """Return several scores of each single block, by the name of the score."""
        self.data.prepare(self.console)
        device = self.trainer(logger=False).strategy.root_device
        found = rank_blocks([name for name in scores if name != FIRST_LOSS], self.staged, self.data, device)
        if FIRST_LOSS in scores:
            found[FIRST_LOSS] = self._first_loss()
        return broadcast({name: found[name] for name in scores})

    def _first_loss(self) -> Mapping[str, float]:
        """Return minus the training loss of one epoch of each single block, at its best learning rate."""
        scopes = [scope for scope in self.scopes if scope.name.isdigit()]
        # schedules need the real number of epochs, and policies may begin with the head alone
        module = self._module(self.cells(scopes, [STATIC]), replace(self.recipe, scheduler=None, policies={}))
        trainer = self.trainer(logger=False, callbacks=self.data.callbacks(), max_epochs=1)
        _call(trainer, trainer.fit, module, datamodule=self.data.module)
        losses: dict[str, float] = {}
        for cell, progress in zip(module.cells, module.progress, strict=True):
            loss = progress.history[0]["train"]["loss"]
            losses[cell.scope.name] = min(
                loss if math.isfinite(loss) else math.inf, losses.get(cell.scope.name, math.inf)
            )
        return {scope: -loss for scope, loss in losses.items()}

    def _single_blocks(self, policy: str) -> set[str]:
        """Return the names of the recorded single blocks."""
        sweep = self.sweep(policy)
        return {row.scope for row in sweep.single_blocks} if sweep else set()

    def report(self) -> None:
        """Print the table of the sweep over all seeds, and save a plot of accuracy by block; for each policy."""
        for policy in self.recipe.policies:
            if (sweep := self.sweep(policy, all_seeds=True)) is None:
                continue
            print_table(self.console, sweep_table(sweep))
            if sweep.best is not None:
                path = self.store.sweep_folder(self.settings) / f"accuracy-by-block-{sweep.key}.png"
                accuracy_by_block([sweep]).savefig(path, dpi=150)
                self.console.print(f"Accuracy by block: {path}", soft_wrap=True, highlight=False)

    def plan(self) -> tuple[list[CellPlan], Costs]:
        """Print and return the cells that `train` would train and their estimated cost, timed on steps with noise."""
        partition, cells = self.staged.partition, self.cells()
        head = new_head(self.staged, len(self.data.classes), self.backbone.head)
        width = sum(parameter.numel() for parameter in head.parameters())
        plans = [
            describe(
                name,
                cell,
                self._phases(cell),
                partition,
                recorded=self.is_recorded(cell),
                # each image is in the training images of all networks of a cell but one
                networks=self.data.folds or 1,
                trainable=width + num_trainable(cell.scope, partition, self.backbone.network),
            )
            for name, cell in zip(cell_names(cells), cells, strict=True)
        ]
        missing = [
            cell for cell, plan in zip(cells, plans, strict=True) if not plan.recorded and plan.flops is not None
        ]
        costs = self._measure(missing) if missing else Costs()
        show(self.console, f"{self.title}, {len(partition)} blocks", plans, costs)
        if self._searched is not None:
            self.console.print(self._expected_cost(), highlight=False)
        return plans, costs

    def _expected_cost(self) -> str:
        """Say what the search is expected to cost."""
        partition, epochs = self.staged.partition, int(self.settings["trainer"]["max_epochs"])
        names = [scope.name for scope in self.scopes if scope.top is None]

        def flops(name: str) -> int:
            (scope,) = self._scopes([name])
            return cell_flops(partition, scope.blocks, scope.blocks, whole=scope.part == "all")

        share = expected_share(self.search, names, self.rates, epochs, flops)
        return (
            f"search={(self._searched or {})['name']}: about {100 * share:.0f} % of the cells' own operations, if no "
            "difference is significant"
        )

    def _phases(self, cell: Cell) -> list[Phase]:
        """Return what trains in each epoch."""
        return phases(self.recipe.policy(cell.policy), cell.scope.blocks, int(self.settings["trainer"]["max_epochs"]))

    def _measure(self, cells: list[Cell]) -> Costs:
        side_by_side = cells[:1] if self.staged.whole else cells
        trainer = self.trainer(logger=False, callbacks=[Stopwatch()], max_epochs=1, devices=1, strategy="auto")
        epochs = self.trainer(logger=False).max_epochs or 1
        # the most expensive epoch of every policy; schedules need the real number of steps
        recipe = replace(self.recipe, scheduler=None, policies={})
        costs = measure(
            self._module([replace(cell, policy=STATIC) for cell in side_by_side], recipe),
            trainer,
            self.data.image_size,
            self.data.batch_size(),
            self.data.batches(),
            epochs,
        )
        if self.staged.whole:  # cells train one after another
            costs = replace(costs, seconds=len(cells) * costs.seconds, disk_bytes=len(cells) * costs.disk_bytes)
        return costs

    def _train(self, cells: list[Cell], *, retrain: bool) -> dict[str, Record]:
        """Train the cells without a record, and return the records of all, by the cells' names."""
        missing = [cell for cell in cells if retrain or not self.is_recorded(cell)]
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
                # another process may just have recorded a cell and released its lock
                mine = broadcast(
                    [
                        cell
                        for cell, locked in zip(candidates, claimed, strict=True)
                        if locked and (retrain or not self.is_recorded(cell))
                    ]
                )
                if mine:
                    self._train_side_by_side(mine)
            cells = broadcast([cell for cell in cells if cell not in mine and (retrain or not self.is_recorded(cell))])
            if cells:
                self.console.print(f"waiting for another process, which is training {len(cells)} of these cells")
                if first:
                    wait(self.store.lock(self.cell_settings(cells[0])))

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
        self.data.prepare(self.console)
        counts = self.data.class_counts()
        loss = self.recipe.loss if counts is None else with_class_counts(self.recipe.loss, counts)
        module = self._module(cells, replace(self.recipe, loss=loss))
        checkpoints = Checkpoints(self.store.checkpoints(self.settings))
        checkpoint = broadcast(checkpoints.find(cells))
        if checkpoint:
            self.console.print("resuming from the checkpoint of an interrupted run")
        every = None if self.checkpoint_minutes is None else 60 * self.checkpoint_minutes
        saving = CheckpointCallback(checkpoints.path(cells), every, between_batches=self.data.ours)
        recorder = Recorder(self.backbone, self.data.entry, self.data.classes, self.cell_settings, self._searched)
        with CellTracking(self.loggers, recorder) as tracking:
            with ProgressDisplay(self.console, self.title) as display:
                callbacks = [*self.data.callbacks(), display, tracking, saving]
                trainer = self.trainer(logger=False, callbacks=callbacks, plugins=[AtomicCheckpointIO()])
                _call(trainer, trainer.fit, module, datamodule=self.data.module, ckpt_path=checkpoint)
                if any(progress.status in ("running", "stopped") for progress in module.progress):
                    _call(trainer, trainer.test, module, datamodule=self.data.module, verbose=False)
            _check_outcome(module)
            if rank() == 0:
                records = recorder.save(self.store, module)
                checkpoints.drop(self._recorded_keys())
                if self.loggers:
                    tracking.finish(module, records, {policy: self.sweep(policy) for policy in self._policies()})

    def _recorded_keys(self) -> set[str]:
        """Return the keys of all recorded cells of this sweep and seed, including those trained by other runs."""
        recorded = [sweep for policy in self._policies() if (sweep := self.sweep(policy))]
        return {checkpoint_key(r) for sweep in recorded for r in sweep.records}

    def _policies(self) -> set[str]:
        """Return the names of all policies of cells; `head` is always static."""
        return {STATIC, *self.recipe.policies}

    def _module(self, cells: list[Cell], recipe: Recipe) -> BlockwiseModule:
        return BlockwiseModule(
            self.staged,
            cells,
            num_classes=len(self.data.classes),
            optimizer=self.optimizer,
            recipe=recipe,
            head=self.backbone.head,
            seed=self.settings["seed"],
            keep_bytes=self.keep_bytes,
            folds=self.data.folds,
            search=self.search,
            lanes=self.cells_at_once,
            tell=partial(self.console.print, highlight=False),
        )


def _search_of(record: Record) -> dict[str, Any]:
    """Return name and settings of the search that stopped a cell."""
    search = record.provenance.get("search")
    own = search if isinstance(search, dict) else {}
    return {key: value for key, value in own.items() if key not in COSTS}


def checkpoint_key(record: Record) -> str:
    """Return the name of a recorded cell in checkpoints."""
    policy = {"policy": record.settings["policy"]} if "policy" in record.settings else {}
    return saved_key(cell_key(record.cell.scope, record.lr, record.policy), settings_hash(policy) if policy else "")


def _call(trainer: L.Trainer, entry: Callable[..., Any], module: BlockwiseModule, **options: Any) -> None:
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
