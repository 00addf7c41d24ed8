"""Config -> cells -> fit -> records: the main job."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import hydra
import lightning as L
import torch
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from blockwise.analysis.figures import accuracy_by_block
from blockwise.analysis.summary import Sweep, sweeps
from blockwise.analysis.table import print_table, sweep_table
from blockwise.backbones import Backbone, load_backbone
from blockwise.cells import Cell, cell_key
from blockwise.checks import as_list, check_config
from blockwise.cpu import has_bfloat16
from blockwise.data import BlockwiseDataModule
from blockwise.data.cache import PixelCache
from blockwise.distributed import begin, from_first, rank
from blockwise.errors import InputError
from blockwise.jobs import report_cells
from blockwise.layers import record_layers
from blockwise.locks import claim, wait
from blockwise.module import BlockwiseModule, OptimizerFactory
from blockwise.partition import Partition
from blockwise.plan import Costs, Stopwatch, describe, measure, show
from blockwise.progress import ProgressDisplay, decoding
from blockwise.record import Recorder
from blockwise.results import Record, ResultStore, find_records, sweep_hash
from blockwise.resume import CheckpointCallback, Checkpoints, WholeFiles
from blockwise.scopes import Scope, parse_scopes
from blockwise.settings import common_settings
from blockwise.stages import CannotStageError, StagedBackbone, stage_backbone, whole_backbone
from blockwise.tracking import CellTracking, OpenLog, open_loggers


@dataclass
class Study:
    """One backbone on one data set, ready to train cells of it.

    Attributes:
        cfg: The composed config.
        backbone: The pretrained network.
        staged: The same, cut at the partition's boundaries.
        data: The data module.
        store: Where records go.
        scopes: What was asked for.
        loggers: What opens a cell's run with each logger.
        console: Where a user reads.
    """

    cfg: DictConfig
    backbone: Backbone
    staged: StagedBackbone
    data: BlockwiseDataModule
    store: ResultStore
    scopes: list[Scope]
    loggers: list[OpenLog]
    console: Console

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Return every setting that changes a cell's result."""
        own = {"scope": cell.scope.name, "blocks": list(cell.scope.blocks), "lr": cell.lr}
        return {**self.common_settings(), **own}

    def cells(self, scopes: Iterable[Scope]) -> list[Cell]:
        """Return the cells of some scopes: each at every learning rate."""
        return [Cell(scope, float(lr)) for scope in scopes for lr in as_list(self.cfg.optimizer.lr)]

    def recorded(self, cell: Cell) -> bool:
        """Whether a cell has a record."""
        return self.store.find(self.settings(cell)) is not None

    def recorded_keys(self) -> set[str]:
        """Return the keys of all recorded cells of this sweep and seed, whichever run they are from."""
        sweep = self.sweep()
        records = sweep.records if sweep else ()
        return {cell_key(record["cell"]["scope"], record["settings"]["lr"]) for record in records}

    def common_settings(self) -> dict[str, Any]:
        """Return the settings that all cells share."""
        return common_settings(plain(self.cfg), self.backbone, self.data, self.staged.partition.name)

    def sweep(self, *, all_seeds: bool = False) -> Sweep | None:
        """Return what is recorded of this sweep."""
        folder = self.store.sweep_folder(self.common_settings())
        records = find_records(folder)
        seed = self.cfg.seed
        found = sweeps(record for record in records if all_seeds or record["seed"] == seed)
        return next((sweep for sweep in found if sweep.key == sweep_hash(self.common_settings())), None)


def run(cfg: DictConfig, console: Console | None = None) -> list[Record]:
    """Train every cell that a config names and that is not recorded yet; print the table, draw the picture.

    Returns:
        The records of all these cells, those recorded before included.

    Raises:
        InputError: Something in the config, the data or the weights is not as it must be; nothing has trained.
    """
    study = prepare(cfg, console or Console(markup=False, quiet=rank() > 0))
    if cfg.plan:
        _plan(study)
        return []
    records = train(study, [scope for scope in study.scopes if scope.top is None])
    for scope in study.scopes:
        if scope.top is not None:
            sweep = study.sweep()
            best = [row.blocks[0] for row in sweep.single_blocks] if sweep else []
            records += train(study, [scope.resolve(best)])
    if rank() == 0:
        report(study)
    return records


def prepare(cfg: DictConfig, console: Console) -> Study:
    """Check a config and make everything that training needs; reads no image yet.

    Raises:
        InputError: Something is not as it must be.
    """
    check_config(plain(cfg))
    trainer = _trainer(cfg, logger=False)
    begin(trainer.strategy.root_device)
    _hint(console, trainer)
    make_optimizer(cfg)
    loggers = open_loggers(cfg) if rank() == 0 and not cfg.plan else []
    store = ResultStore(cfg.results_dir)
    console.print(f"loading {cfg.model.name}", style="dim", highlight=False)  # a download may take minutes
    backbone = load_backbone(cfg.model, image_size=cfg.data.image_size, seed=cfg.seed)
    if cfg.data.crop_pct is not None:
        backbone.images = replace(backbone.images, crop_pct=float(cfg.data.crop_pct))
    size = backbone.images.size
    partition = _partition(cfg, backbone)
    scopes = parse_scopes(plain(cfg)["block"], len(partition), backbone.name)
    data = BlockwiseDataModule(
        hydra.utils.instantiate(cfg.data.source),
        backbone.images,
        batch_size=cfg.data.batch_size,
        augment=as_list(plain(cfg)["data"]["augment"]),
        seed=cfg.seed,
        num_workers=cfg.data.num_workers,
        skip_broken=cfg.data.skip_broken,
        cache=None if cfg.cache.folder is None else PixelCache(cfg.cache.folder, int(1e9 * cfg.cache.max_gb)),
    )
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        staged = stage_backbone(backbone.network, partition, example)
    except CannotStageError as error:
        console.print(f"{backbone.name} cannot be cut into stages ({error}): its cells train one at a time.")
        staged = whole_backbone(backbone.network, partition, example)
    study = Study(cfg, backbone, staged, data, store, scopes, loggers, console)
    _check_top(study)
    return study


def train(study: Study, scopes: list[Scope]) -> list[Record]:
    """Train the cells of some scopes that are not recorded yet, and return the records of all of them."""
    cells = study.cells(scopes)
    missing = [cell for cell in cells if not study.recorded(cell)]
    if cells:
        partition = study.staged.partition
        console = study.console
        console.print(
            f"{study.backbone.name} on {study.cfg.data.name}, partition {partition.name} of {len(partition)} blocks: "
            f"{len(cells)} cells, {len(cells) - len(missing)} of them recorded already",
            highlight=False,
        )
    report_cells(cell.key for cell in missing)
    # a network that cannot be cut is copied whole for every cell: one at a time
    for group in [[cell] for cell in missing] if study.staged.whole else [missing]:
        _train_or_wait(study, group)
    return [record for cell in cells if (record := study.store.find(study.settings(cell))) is not None]


def _train_or_wait(study: Study, cells: list[Cell]) -> None:
    """Train the cells that no other process trains, then see what has become of the others."""
    first = rank() == 0  # of the processes that share each batch, one decides for all
    while cells:
        wanted = cells if first else []
        with claim([study.store.lock(study.settings(cell)) for cell in wanted]) as claimed:
            # another process may have recorded a cell and let go of it just now
            mine = from_first(
                [cell for cell, got in zip(wanted, claimed, strict=True) if got and not study.recorded(cell)]
            )
            if mine:
                _train_side_by_side(study, mine)
        cells = from_first([cell for cell in cells if not study.recorded(cell)])
        if cells:
            study.console.print(f"waiting for another process, which trains {len(cells)} of these cells")
            if first:
                wait(study.store.lock(study.settings(cells[0])))


def report(study: Study) -> None:
    """Print the sweep's table and draw its picture."""
    sweep = study.sweep(all_seeds=True)
    if sweep is None:
        return
    print_table(study.console, sweep_table(sweep))
    if sweep.best is not None:
        folder = study.store.sweep_folder(study.common_settings())
        path = folder / f"accuracy-by-block-{sweep.key}.png"
        accuracy_by_block([sweep]).savefig(path, dpi=150)
        study.console.print(f"Accuracy by block: {path}", soft_wrap=True, highlight=False)


def _train_side_by_side(study: Study, cells: list[Cell]) -> None:
    cfg, data = study.cfg, study.data
    with decoding(study.console) as begin:
        data.decode(begin)
    if data.skipped:
        study.console.print(f"left out, since they cannot be read: {', '.join(data.skipped)}", highlight=False)
    module = _module(study, cells)
    checkpoints = Checkpoints(study.store.checkpoints(study.common_settings()))
    begun = from_first(checkpoints.find(cells))
    if begun:
        study.console.print("going on from the checkpoint of an interrupted run")
    minutes = cfg.checkpoint.every_minutes
    saving = CheckpointCallback(checkpoints.path(cells), None if minutes is None else 60 * minutes)
    recorder = _recorder(study)
    with CellTracking(study.loggers, recorder) as tracking:
        with ProgressDisplay(study.console, f"{study.backbone.name} on {cfg.data.name}") as display:
            trainer = _trainer(cfg, logger=False, callbacks=[display, tracking, saving], plugins=[WholeFiles()])
            _call(trainer, trainer.fit, module, datamodule=data, ckpt_path=begun)
            if any(progress.status in ("running", "stopped") for progress in module.progress):
                _call(trainer, trainer.test, module, datamodule=data, verbose=False)
        if rank() == 0:
            records = recorder.save(study.store, module)
            checkpoints.drop(study.recorded_keys())
            if study.loggers:
                tracking.finish(module, records, study.sweep())


def _module(study: Study, cells: list[Cell]) -> BlockwiseModule:
    cfg = study.cfg
    return BlockwiseModule(
        study.staged,
        cells,
        num_classes=len(study.data.splits.classes),
        optimizer=make_optimizer(cfg),
        block_lr=cfg.optimizer.block_lr,
        norm=cfg.freeze.norm,
        patience=cfg.early_stopping.patience,
        seed=cfg.seed,
        keep_bytes=int(1e9 * cfg.cache.activations_gb),
    )


def _plan(study: Study) -> None:
    """Show what would be trained and what it would cost, and train nothing."""
    cfg, data, partition = study.cfg, study.data, study.staged.partition
    cells = study.cells(study.scopes)
    head = (study.staged.num_features + 1) * len(data.splits.classes)
    several = len({cell.lr for cell in cells}) > 1
    known = [
        describe(cell, partition, recorded=study.recorded(cell), several_rates=several, head=head) for cell in cells
    ]
    missing = [cell for cell, plan in zip(cells, known, strict=True) if not plan.recorded and plan.flops is not None]
    costs = Costs()
    if missing:
        side_by_side = missing[:1] if study.staged.whole else missing
        one = {"max_epochs": 1, "devices": 1, "strategy": "auto"}
        trainer = _trainer(cfg, logger=False, callbacks=[Stopwatch()], **one)
        counts = {split: len(getattr(data.splits, split)) for split in ("train", "val", "test")}
        counts["epochs"] = cfg.trainer.max_epochs
        costs = measure(_module(study, side_by_side), trainer, data.images.size, data.batch_size, counts)
        if study.staged.whole:  # one after another
            costs = replace(costs, seconds=len(missing) * costs.seconds, disk_bytes=len(missing) * costs.disk_bytes)
    show(study.console, f"{study.backbone.name} on {cfg.data.name}, {len(partition)} blocks", known, costs)


def _recorder(study: Study) -> Recorder:
    data = study.data
    entry = {
        "name": study.cfg.data.name,
        "classes": len(data.splits.classes),
        "image_size": data.images.size,
        **data.counts(),
        "skipped": data.skipped,
    }
    return Recorder(study.backbone, entry, data.splits.classes, study.settings)


def _call(trainer: L.Trainer, entry: Callable[..., Any], module: BlockwiseModule, **options: Any) -> None:
    try:
        entry(module, **options)
    except MisconfigurationException as error:
        raise InputError(f"Lightning's trainer refuses its settings: {error}") from error
    except SystemExit:
        # Lightning turns a second Ctrl-C into an exit; what is above wants to say what is kept
        if trainer.interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        raise


def make_optimizer(cfg: DictConfig) -> OptimizerFactory:
    """Return what makes an optimizer of parameter groups.

    Raises:
        InputError: The optimizer does not take its settings.
    """
    options = {key: value for key, value in plain(cfg)["optimizer"].items() if key not in ("lr", "block_lr")}
    try:
        factory: OptimizerFactory = hydra.utils.instantiate(options)
        factory([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3}])
    except (InstantiationException, TypeError, ValueError) as error:
        raise InputError(f"the optimizer cannot be made ({error}): look at the settings of optimizer") from error
    return factory


def _trainer(cfg: DictConfig, **options: Any) -> L.Trainer:
    try:
        trainer: L.Trainer = hydra.utils.instantiate(cfg.trainer, **options)
    except InstantiationException as error:
        reason = str(error.__cause__ or error)
        raise InputError(f"the trainer cannot be made ({reason}): look at the settings of trainer") from error
    if cfg.trainer.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise InputError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true on the CPU")
    return trainer


def _hint(console: Console, trainer: L.Trainer) -> None:
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu" and not has_bfloat16():
        console.print("this CPU has no instructions for bfloat16: trainer.precision=32-true is faster on it")


def _partition(cfg: DictConfig, backbone: Backbone) -> Partition:
    size = backbone.images.size
    try:
        layers = record_layers(backbone.network, torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"data.image_size={size} does not fit {backbone.name} ({reason}): choose another, or null for its own size"
        ) from error
    partition: Partition = hydra.utils.instantiate(cfg.partition)(layers, backbone.network)
    return partition


def _check_top(study: Study) -> None:
    """Refuse a `top` scope that will not have enough single blocks to choose from."""
    sweep = study.sweep()
    single = {row.scope for row in sweep.single_blocks} if sweep else set()
    single |= {scope.name for scope in study.scopes if scope.name.isdigit()}
    for scope in study.scopes:
        if scope.top is not None and len(single) < scope.top:
            raise InputError(
                f"block={scope.name} needs {scope.top} single blocks to choose from, and this sweep has {len(single)}: "
                f"train them first, or together as 'block=[all,{scope.name}]'"
            )


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain dictionaries and lists, interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
