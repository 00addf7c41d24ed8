"""Build the parts of a study from a config and check them before training."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import hydra
import lightning as L
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from rich.console import Console

from blockwise.backbone.cut import cut
from blockwise.backbone.load import (
    Backbone,
    ImageSpec,
    describe_backbone,
    image_spec,
    load_backbone,
    needs_download,
)
from blockwise.backbone.makers.hub import UnreachableError
from blockwise.backbone.partition import Partition
from blockwise.backbone.stages import CannotStageError, StagedBackbone, stage_backbone, whole_backbone
from blockwise.config.checks import as_list
from blockwise.config.compose import plain
from blockwise.data import BlockwiseDataModule, Source
from blockwise.data.loaders import check_data
from blockwise.data.pixels.cache import PixelCache
from blockwise.errors import InputError, check_memory, first_line
from blockwise.fast.memory import has_bfloat16
from blockwise.io.targets import instantiate
from blockwise.recipe.parameter_groups import OptimizerFactory, check_optimizer
from blockwise.study.data import StudyData, module_classes
from blockwise.study.settings import DATA, NEWER_DATA
from blockwise.study.worker import known_unreachable, report_unreachable
from blockwise.tracking.callback import OpenLog
from blockwise.training.distributed import count_processes, is_distributed
from blockwise.training.scopes import parse_scopes

# loggers that need an extra of this package
EXTRAS = ("tensorboard",)
# settings of an optimizer that are blockwise's own, not arguments of its class
RATES = ("lr", "block_lr", "layer_decay", "no_decay", "clip_norm")


def make_backbone(cfg: DictConfig) -> Backbone:
    """Load the backbone of a config; a plan downloads nothing and has random weights instead.

    Raises:
        InputError: The weights cannot be loaded, or do not fit.
    """
    source = cfg.model.source
    if not cfg.plan and (reason := known_unreachable(source)) and needs_download(cfg.model):
        raise InputError(f"the pretrained weights of {cfg.model.name} could not be downloaded ({reason})")
    try:
        backbone = load_backbone(cfg.model, image_size=cfg.data.image_size, seed=cfg.seed, download=not cfg.plan)
    except InputError as error:
        if isinstance(error.__cause__, UnreachableError):
            report_unreachable(source, str(error.__cause__))
        raise
    backbone.images = make_images(cfg)
    return backbone


def make_images(cfg: DictConfig) -> ImageSpec:
    """Return the size and preprocessing of a config's images."""
    images = image_spec(cfg.model, cfg.data.image_size)
    crop_pct = cfg.data.get("crop_pct")  # a LightningDataModule crops its images itself
    return images if crop_pct is None else replace(images, crop_pct=float(crop_pct))


def check_before_download(cfg: DictConfig) -> None:
    """Check the settings that depend on the network, with a network without weights, before its weights are downloaded.

    Raises:
        InputError: The images do not fit the network, a partitioner's option does not, or there is no such scope.
    """
    if not cfg.plan and needs_download(cfg.model):
        network, _ = describe_backbone(cfg.model, cfg.data.image_size)
        partition = cut(network, make_images(cfg).size, cfg.partition, cfg.model)
        parse_scopes([*as_list(plain(cfg)["block"]), *as_list(cfg.search.then or [])], len(partition), cfg.model.name)


def make_stages(backbone: Backbone, partition: Partition, console: Console) -> StagedBackbone:
    """Cut a backbone's network into stages; if that fails, print a notice and return it as a single stage."""
    size = backbone.images.size
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        return stage_backbone(backbone.network, partition, example)
    except CannotStageError as error:
        check_memory(error, f"data.image_size={size}")
        if partition.head:
            raise InputError(f"model.head=own: {backbone.name} cannot be cut in front of its head ({error})") from error
        console.print(f"{backbone.name} cannot be cut into stages ({error}): its cells train one at a time.")
        return whole_backbone(backbone.network, partition, example)


def make_data(cfg: DictConfig, images: ImageSpec) -> StudyData:
    """Return the data of a config; images are not decoded yet.

    Raises:
        InputError: The data set is missing or too small, or a transform or a data module cannot be used.
    """
    settings = plain(cfg)["data"]
    if settings.get("split_seed") is not None:
        settings["source"]["seed"] = settings["split_seed"]
    source = instantiate("data.source", settings["source"])
    if isinstance(source, L.LightningDataModule):
        check_data(source)
        if is_distributed() or count_processes(cfg.trainer.devices) > 1:
            raise InputError(
                "trainer=ddp shares batches of images that blockwise reads itself, not those of a LightningDataModule: "
                "train on one device"
            )
        if settings.get("folds") is not None:
            raise InputError(
                "data.folds divides images that blockwise reads itself: not those of a LightningDataModule"
            )
        return StudyData(settings["name"], module_classes(settings, source), images.size, source, cfg.seed)
    if not hasattr(source, "splits"):
        raise InputError(f"data.source: {settings['source']['_target_']} is neither a LightningDataModule nor a Source")
    module = _blockwise_module(cfg, source, images)
    return StudyData(settings["name"], module.splits.classes, images.size, module)


def _blockwise_module(cfg: DictConfig, source: Source, images: ImageSpec) -> BlockwiseDataModule:
    settings = plain(cfg)["data"]
    if missing := [key for key in (*DATA, "augment", "num_workers") if key not in settings]:
        raise InputError(f"data.{missing[0]} is missing: begin the file of the data set with defaults: [_base, _self_]")
    cached = cfg.cache.folder and cfg.cache.max_gb
    # a data set's own file may lack the newer settings
    newer = {key: settings[key] for key in NEWER_DATA if key in settings}
    return BlockwiseDataModule(
        source,
        images,
        batch_size=settings["batch_size"],
        augment=settings["augment"],
        **newer,
        seed=cfg.seed,
        num_workers=settings["num_workers"],
        skip_broken=settings["skip_broken"],
        cache=PixelCache(cfg.cache.folder, int(1e9 * cfg.cache.max_gb)) if cached else None,
        gpu_bytes=int(1e9 * cfg.gpu.images_gb),
    )


def make_optimizer(cfg: DictConfig) -> OptimizerFactory:
    """Return the optimizer factory of a config, which takes parameter groups.

    Raises:
        InputError: The optimizer refuses its settings.
    """
    options = {key: value for key, value in plain(cfg)["optimizer"].items() if key not in RATES}
    try:
        factory: OptimizerFactory = hydra.utils.instantiate(options)
        check_optimizer(factory)
    except InputError:
        raise
    except Exception as error:  # optimizers check little, and fail in many ways
        reason = first_line(error.__cause__ or error)
        advice = "remove it with '~optimizer.fused'" if "'fused'" in reason else "check the optimizer settings"
        raise InputError(f"the optimizer cannot be created ({reason}): {advice}") from error
    return factory


def make_trainer(cfg: DictConfig, **options: Any) -> L.Trainer:
    """Return a new trainer; options override its settings.

    Raises:
        InputError: Lightning refuses the settings.
    """
    try:
        trainer: L.Trainer = hydra.utils.instantiate(cfg.trainer, **options)
    except InstantiationException as error:
        reason = str(error.__cause__ or error)
        raise InputError(f"the trainer cannot be created ({reason}): check the trainer settings") from error
    if cfg.trainer.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise InputError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU")
    return trainer


def hint_at_precision(console: Console, trainer: L.Trainer) -> None:
    """Print a notice if bfloat16 is slow on this CPU."""
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu" and not has_bfloat16():
        console.print("this CPU has no bfloat16 instructions: trainer.precision=32-true is faster")


def open_loggers(cfg: DictConfig) -> list[OpenLog]:
    """Return one function per logger of a config, which opens the run of a cell.

    Raises:
        InputError: A logger cannot be used here.
    """
    loggers: list[OpenLog] = []
    for name, entry in (cfg.get("logger") or {}).items():
        if entry is None:
            continue
        if name in EXTRAS and find_spec(str(name)) is None:
            raise InputError(f"logger={name} needs a package that is not installed: pip install 'blockwise[{name}]'")
        try:
            loggers.append(hydra.utils.instantiate(entry))
        except InstantiationException as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from error
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise InputError(f"logger={name} cannot be used ({reason}): check the logger settings") from error
    return loggers
