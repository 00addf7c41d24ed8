"""The Python API: load a backbone, cut it into blocks, train, read records, plot.

>>> from blockwise import load_backbone, make_partition, plot_accuracy_by_block, read_records, train_scopes
>>> backbone = load_backbone("timm:test_resnet", pretrained=False, image_size=32)
>>> partition = make_partition(backbone, num_blocks=3)
>>> len(partition), partition.quarter(2)
(3, 4)
>>> images, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 2
>>> loader = DataLoader(TensorDataset(images, labels), batch_size=8)
>>> folder = tempfile.mkdtemp()
>>> records = train_scopes(
...     backbone, partition, ["head", 1, "full"], {"train": loader, "val": loader, "test": loader},
...     classes=["cat", "dog"], max_epochs=2, results_dir=folder, accelerator="cpu", quiet=True,
... )
>>> [record.cell.scope for record in records]
['head', '1', 'full']
>>> read_records(folder)[["backbone", "scope", "trainable", "status"]].to_numpy().tolist()[0]
['test_resnet', '1', 55138, 'finished']
>>> plot_accuracy_by_block(folder)
<Figure size 700x400 with 1 Axes>
"""

from __future__ import annotations

import copy
import tempfile  # noqa: F401 (the examples above)
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset  # noqa: F401 (the examples above)

from blockwise import api_checks, results
from blockwise.analysis.figures import accuracy_by_block
from blockwise.analysis.summary import sweeps
from blockwise.api_trainer import trainer_factory
from blockwise.backbone import load
from blockwise.backbone.cut import cut
from blockwise.backbone.load import Backbone, HeadKind, ImageSpec
from blockwise.backbone.partition import Partition
from blockwise.config.compose import compose_config, plain
from blockwise.config.compose import options as config_options
from blockwise.config.model_names import model_overrides
from blockwise.data.loaders import LoaderDataModule, check_data, check_loaders
from blockwise.errors import InputError, did_you_mean
from blockwise.exports.choose import as_record
from blockwise.exports.network import trained_network
from blockwise.fast.memory import freed_memory_kept
from blockwise.policies import STATIC, Policy
from blockwise.quiet import silenced_libraries
from blockwise.recipe.parameter_groups import OptimizerFactory
from blockwise.recipe.recipe import Loss, NormMode
from blockwise.recipe.schedulers import Schedule
from blockwise.results.record import Record
from blockwise.results.store import ResultStore
from blockwise.search import Search
from blockwise.study.data import StudyData
from blockwise.study.prepare import make_stages
from blockwise.study.run import run
from blockwise.study.settings import python_settings
from blockwise.study.study import Study
from blockwise.tracking.callback import OpenLog
from blockwise.training.distributed import rank
from blockwise.training.scopes import parse_scopes

if TYPE_CHECKING:
    import pandas as pd

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# blockwise writes its own records and shows its own progress
BARE = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
}
Data = L.LightningDataModule | Mapping[str, Any]


def load_backbone(
    model: str | nn.Module,
    *,
    name: str | None = None,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    head: HeadKind = "linear",
) -> Backbone:
    """Load a network without its classifier, together with the size and normalisation of its input images.

    Args:
        model: A model name, such as `vgg16`, `timm:resnet18` or any other that `blockwise inspect` accepts. Or your own
            network, which maps images, shape (batch, 3, size, size), to features, shape (batch, features).
        name: Name of the backbone in records; required for your own network.
        pretrained: Load pretrained weights; False initializes weights at random.
        checkpoint: A `.safetensors` or `.pth` file to load weights from instead.
        image_size: Side of the images in pixels; None uses the model's default.
        seed: Seed of random weights.
        options: Arguments for the builder of timm or torchvision, such as `{"drop_path_rate": 0.1}`.
        head: Kind of the new head: `linear`, `mlp` (one hidden layer), or `own` (the architecture's own layers behind
            its features, such as the linear layers of VGG, with new weights).

    Raises:
        InputError: The model is unknown, or does not take an option, or the weights are missing or do not fit.
    """
    image_size = api_checks.check("data.image_size", "image_size", image_size)
    seed = api_checks.check("seed", "seed", seed)
    head = api_checks.check("model.head", "head", head)
    if name is not None:
        api_checks.check("data.name", "name", name)
    if isinstance(model, nn.Module):
        if name is None or image_size is None:
            raise InputError("your own network needs name= and image_size=")
        if options is not None:
            raise InputError("options= are for networks of timm and torchvision: set those of your own yourself")
        if checkpoint is not None:
            raise InputError("checkpoint= is for networks of timm and torchvision: load your own with load_state_dict")
        images = ImageSpec(image_size, IMAGENET_MEAN, IMAGENET_STD, "bicubic", 0.875)
        network = api_checks.check_network(model, image_size)
        return Backbone(name, network, "own", images, {} if head == "linear" else {"head": head}, head)
    if not isinstance(model, str):
        raise InputError(f"{model!r} is neither a model name nor a network")
    overrides = [f"model.pretrained={str(pretrained).lower()}"]
    cfg = compose_config([*model_overrides(model), *overrides]).model
    cfg.checkpoint = None if checkpoint is None else str(checkpoint)
    settings = {
        **plain(cfg),
        "head": head,
        **({} if options is None else {"options": api_checks.check_options(options)}),
    }
    backbone = load.load_backbone(settings, image_size=image_size, seed=seed)
    backbone.name = name or backbone.name
    return backbone


def make_partition(backbone: Backbone, partitioner: str = "auto", **options: Any) -> Partition:
    """Cut a backbone into blocks.

    Args:
        backbone: The backbone to cut.
        partitioner: A name under `conf/partition/`: `auto`, `unit`, `segment`, `layer`, `window`, `stage`, `even`.
        options: Settings of the partitioner, such as `num_blocks=12` or `length=4`.

    Raises:
        InputError: The partitioner is unknown, or its options do not fit the backbone.
    """
    if partitioner not in (choices := config_options("partition")):
        raise InputError(f"there is no partitioner {partitioner!r}: choose from {', '.join(choices)}")
    settings = compose_config([f"partition={partitioner}"]).partition
    for key, value in options.items():
        if key not in settings or key == "_target_":
            raise InputError(f"the partitioner {partitioner} has no option {key}.{did_you_mean(key, settings)}")
        settings[key] = api_checks.as_plain(value)
    model = {"name": backbone.name, "head": backbone.head, "options": backbone.settings.get("options")}
    return cut(backbone.network, backbone.images.size, settings, model)


def train_scopes(
    backbone: Backbone,
    partition: Partition,
    scopes: object,
    data: Data,
    *,
    classes: Sequence[str],
    data_name: str = "own",
    data_version: str | None = None,
    lr: float | Sequence[float] = 1e-3,
    max_epochs: int = 10,
    policy: str | Policy | Sequence[str] | Mapping[str, Policy] = STATIC,
    optimizer: OptimizerFactory = torch.optim.AdamW,
    block_lr: float | None = None,
    layer_decay: float | None = None,
    no_decay: bool = False,
    clip_norm: float | None = None,
    scheduler: str | Schedule | None = None,
    loss: Loss = cross_entropy,
    select_by: str = "top1",
    norm: NormMode = "eval",
    patience: int | None = None,
    search: str | Search = "exhaustive",
    seed: int = 0,
    results_dir: str | Path = "results",
    retrain: bool = False,
    plan: bool = False,
    loggers: Sequence[OpenLog] = (),
    checkpoint_minutes: float | None = 1,
    quiet: bool = False,
    **trainer: Any,
) -> list[Record]:
    """Train scopes side by side on your data, save their records, and return them.

    This behaves like `python train.py`: scopes with a record are skipped, interrupted training resumes, and two
    processes never train the same cell. A record is identified by a hash of all settings. The hash covers the content
    of the images in a `BlockwiseDataModule` and in DataLoaders over a `TensorDataset`. For other data it covers only
    names, batch sizes, samplers and the number of images. If you change such images or their preprocessing, change
    `data_version`.

    Args:
        backbone: From `load_backbone`; it is not modified.
        partition: From `make_partition`, for this backbone.
        scopes: A scope or a list of scopes, as in `block=` on the command line: `"all"`, `["head", 3, "full", "top3"]`.
        data: A LightningDataModule, or DataLoaders under the keys `train`, `val` and `test`. Batches are normalised
            images, shape (batch, 3, size, size), and labels, shape (batch,). DataLoaders draw order and augmentation
            from PyTorch's generator, which is seeded for each epoch. With a LightningDataModule other than
            `BlockwiseDataModule`, checkpoints are saved only between epochs, and you control the order of the images.
        classes: Class names, in the order of their labels.
        data_name: Name of the data set in records.
        data_version: Version of data whose content the hash does not cover.
        lr: One or more learning rates; each scope is trained at each of them.
        max_epochs: Number of epochs, the same for all scopes.
        policy: Which blocks train in an epoch: names under `conf/policy/` (`"lp_ft"`), a policy, or policies by name.
            Each scope is trained under each of them.
        optimizer: Makes an optimizer from parameter groups, each with its own `lr`.
        block_lr: Learning rate of the trained blocks; None uses that of the head.
        layer_decay: Factor by which the rate falls per block away from the head, in scopes of several blocks.
        no_decay: Apply no weight decay to norms and biases.
        clip_norm: Largest norm of a scope's gradient; a larger one is scaled down to it.
        scheduler: A name under `conf/scheduler/` (`"cosine"`), or a `blockwise.recipe.schedulers.Schedule`.
        loss: The training loss, called with logits and labels: `torch.nn.CrossEntropyLoss(label_smoothing=0.1)`.
        select_by: The validation metric that selects a scope's best epoch, its rate and the block: `top1`,
            `mean_per_class`, `macro_f1`, `loss` or `probability` (of the true class).
        norm: Mode of the norms in trained blocks: `eval` (inference mode) or `train` (batch statistics).
        patience: Stop a scope after this many epochs without a better validation score; None never stops.
        search: Which scopes train in which order, and which stop early: a name under `conf/search/` (`"halving"`), or a
            search such as `blockwise.search.Halving(factor=3)`.
        seed: Seed of the head's initial weights, of dropout and of the order of DataLoaders.
        results_dir: Folder of the records.
        retrain: Also train scopes that have a record; the new record replaces the old one.
        plan: Print the cells that would be trained and their estimated cost, and train nothing.
        loggers: One function per logger, which opens the run of a cell: `blockwise.tracking.wandb.WandbRuns(...)`, or
            `partial(LightningLog, logger=partial(CSVLogger, "logs"))` with `blockwise.tracking.callback.LightningLog`.
        checkpoint_minutes: Minutes between checkpoints; None saves only when interrupted.
        quiet: Print nothing.
        trainer: Further settings of Lightning's Trainer, such as `accelerator="cpu"` or `precision="bf16-mixed"`. For
            `devices=2` or more, start your script with torchrun, one process per device.

    Raises:
        InputError: A scope does not exist in the partition, a setting is invalid, or the data lacks a split or has
            batches of the wrong shape.
    """
    with silenced_libraries(), freed_memory_kept(), torch.random.fork_rng(devices=_seeded_devices()):
        backbone = replace(backbone)  # its weights may have changed since their checksum was computed
        rates, names = api_checks.check_rates(lr), api_checks.check_classes(classes)
        data_version = api_checks.check_version(data_version)
        max_epochs = api_checks.check("trainer.max_epochs", "max_epochs", max_epochs)
        patience = api_checks.check("early_stopping.patience", "patience", patience)
        seed = api_checks.check("seed", "seed", seed)
        recipe = api_checks.recipe(
            policy=policy,
            scheduler=scheduler,
            loss=loss,
            select_by=api_checks.check("select_by", "select_by", select_by),
            block_lr=api_checks.check("optimizer.block_lr", "block_lr", block_lr),
            layer_decay=api_checks.check("optimizer.layer_decay", "layer_decay", layer_decay),
            no_decay=api_checks.check("optimizer.no_decay", "no_decay", no_decay),
            clip_norm=api_checks.check("optimizer.clip_norm", "clip_norm", clip_norm),
            norm=api_checks.check("freeze.norm", "norm", norm),
            patience=patience,
        )
        api_checks.check("data.name", "data_name", data_name)
        api_checks.check("checkpoint.every_minutes", "checkpoint_minutes", checkpoint_minutes)
        api_checks.check_optimizer(optimizer)
        api_checks.check_partition(backbone, partition)
        module = _data_module(data, len(names), backbone.images.size, seed)
        options = {**BARE, "max_epochs": max_epochs, **trainer}
        make_trainer = trainer_factory(options, module)
        console = Console(quiet=quiet or rank() > 0)
        parsed = parse_scopes(api_checks.as_plain(scopes), len(partition), backbone.name)
        # cut a copy: staging modifies the network in place
        network = replace(backbone, network=copy.deepcopy(backbone.network))
        study = Study(
            backbone=backbone,
            staged=make_stages(network, partition, console),
            data=StudyData(data_name, names, backbone.images.size, module),
            scopes=parsed,
            rates=rates,
            optimizer=optimizer,
            trainer=make_trainer,
            settings=python_settings(
                backbone,
                partition,
                module,
                optimizer,
                data_name=data_name,
                data_version=data_version,
                classes=names,
                recipe=recipe,
                seed=seed,
                trainer=options,
            ),
            store=ResultStore(results_dir),
            loggers=loggers if rank() == 0 else (),
            recipe=recipe,
            search=api_checks.search(search),
            checkpoint_minutes=checkpoint_minutes,
            console=console,
        )
        if plan:
            study.plan()
            return []
        return study.train(retrain=retrain)


def fine_tuned(backbone: Backbone, record: Record | pd.Series | str | Path) -> nn.Module:
    """Return the trained classifier, which maps images, (batch, 3, size, size), to logits, (batch, classes).

    Args:
        backbone: The backbone that was fine-tuned, from `load_backbone`, with the same pretrained weights.
        record: From `train_scopes`, a row of `read_records`, or the folder of a cell.

    Raises:
        InputError: The weights are missing, or the backbone is another one or has other weights.
    """
    with torch.random.fork_rng(devices=_seeded_devices()):
        return trained_network(replace(backbone), as_record(record))


def run_study(*overrides: str) -> pd.DataFrame:
    """Run `python train.py` with these settings and return its records as a table; see `read_records`.

    Args:
        overrides: Settings as on the command line: `"model=vgg16"`, `"data=digits"`, `"block=[head,3,full]"`.

    Raises:
        InputError: A setting is invalid.
    """
    from blockwise.analysis.frame import records_frame

    with silenced_libraries(), freed_memory_kept(), torch.random.fork_rng(devices=_seeded_devices()):
        return records_frame(run(compose_config(list(overrides)), Console()))


def read_records(folder: str | Path = "results") -> pd.DataFrame:
    """Return the records in a folder and its subfolders, one row each; `blockwise.analysis.frame` lists the columns.

    Raises:
        InputError: There are none.
    """
    from blockwise.analysis.frame import records_frame

    return records_frame(results.read_records(folder))


def plot_accuracy_by_block(folder: str | Path = "results") -> Figure:
    """Plot the accuracy of every block and of both baselines, one panel per sweep in a folder and its subfolders.

    Raises:
        InputError: There are no records.
    """
    return accuracy_by_block([sweep for sweep in sweeps(results.read_records(folder)) if sweep.rows])


def _seeded_devices() -> list[int]:
    """Return the GPUs that this process uses already: what is drawn on them next must not depend on the training."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def _data_module(data: Data, num_classes: int, size: int, seed: int) -> L.LightningDataModule:
    """Check the data as far as possible before training, and return it as a data module."""
    check_data(data)
    if isinstance(data, L.LightningDataModule):
        return data
    check_loaders(data, num_classes, size)
    return LoaderDataModule(data, seed)
