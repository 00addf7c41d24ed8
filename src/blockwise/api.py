"""The package from Python: load, cut, train, read, plot.

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
>>> [record["cell"]["scope"] for record in records]
['head', '1', 'full']
>>> read_records(folder)[["backbone", "scope", "trainable", "status"]].to_numpy().tolist()[0]
['test_resnet', '1', 59810, 'finished']
>>> plot_accuracy_by_block(folder)
<Figure size 700x400 with 1 Axes>
"""

from __future__ import annotations

import copy
import tempfile  # noqa: F401 (the examples above)
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import lightning as L
import torch
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset  # noqa: F401 (the examples above)

from blockwise import api_checks, backbones, config, results, study
from blockwise.analysis.figures import accuracy_by_block
from blockwise.analysis.summary import sweeps
from blockwise.backbones import Backbone, ImageSpec
from blockwise.cells import Cell
from blockwise.cpu import keep_freed_memory
from blockwise.errors import InputError, did_you_mean
from blockwise.freezing import NormMode
from blockwise.hints import silence_hints
from blockwise.inspection import model_overrides
from blockwise.layers import record_layers
from blockwise.module import BlockwiseModule, OptimizerFactory
from blockwise.partition import Partition
from blockwise.progress import ProgressDisplay
from blockwise.record import Recorder
from blockwise.results import Record, ResultStore
from blockwise.scopes import parse_scopes
from blockwise.stages import CannotStageError, StagedBackbone, stage_backbone, whole_backbone

if TYPE_CHECKING:
    import pandas as pd

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# records and our own display take the place of these
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
) -> Backbone:
    """Return a network without its classifier, and what it wants its images to look like.

    Args:
        model: A name that `blockwise inspect` takes (as `vgg16`, `timm:resnet18`), or a network of your own, which maps
            images of shape (batch, 3, size, size) to features of shape (batch, features).
        name: What to call it in records; needed for a network of your own.
        pretrained: Weights of its library; random ones otherwise.
        checkpoint: A `.safetensors` or `.pth` file with weights instead.
        image_size: Side of the images in pixels; None is the network's own.
        seed: Decides random weights.

    Raises:
        InputError: Unknown model, or weights that cannot be had or do not fit.
    """
    image_size = api_checks.check("data.image_size", "image_size", image_size)
    seed = api_checks.check("seed", "seed", seed)
    if name is not None:
        api_checks.check("data.name", "name", name)
    if isinstance(model, nn.Module):
        if name is None or image_size is None:
            raise InputError("a network of your own needs name= and image_size=")
        images = ImageSpec(image_size, IMAGENET_MEAN, IMAGENET_STD, "bicubic", 0.875)
        return Backbone(name, api_checks.check_network(model, image_size), "own", images)
    if not isinstance(model, str):
        raise InputError(f"{model!r} is neither the name of a model nor a network")
    overrides = [f"model.pretrained={str(pretrained).lower()}"]
    cfg = config.compose_config([*model_overrides(model), *overrides]).model
    cfg.checkpoint = None if checkpoint is None else str(checkpoint)
    backbone = backbones.load_backbone(cfg, image_size=image_size, seed=seed)
    backbone.name = name or backbone.name
    return backbone


def make_partition(backbone: Backbone, partitioner: str = "segment", **options: Any) -> Partition:
    """Return the blocks of a backbone.

    Args:
        backbone: What to cut.
        partitioner: A name under `conf/partition/`: `segment`, `layer`, `window`, `stage`, `even`.
        options: Its settings, as `num_blocks=12` or `length=4`.

    Raises:
        InputError: Unknown partitioner, or options that do not fit the backbone.
    """
    if partitioner not in (known := config.options("partition")):
        raise InputError(f"there is no partitioner {partitioner!r}: choose from {', '.join(known)}")
    settings = config.compose_config([f"partition={partitioner}"]).partition
    for key, value in options.items():
        if key not in settings or key == "_target_":
            raise InputError(f"the partitioner {partitioner} has no option {key}.{did_you_mean(key, settings)}")
        settings[key] = list(value) if isinstance(value, tuple) else value
    size = backbone.images.size
    layers = record_layers(backbone.network, torch.zeros(1, 3, size, size))
    try:
        partition: Partition = hydra.utils.instantiate(settings)(layers, backbone.network)
    except InstantiationException as error:
        raise config.explain(error) from error
    return partition


def train_scopes(
    backbone: Backbone,
    partition: Partition,
    scopes: object,
    data: Data,
    *,
    classes: Sequence[str],
    data_name: str = "own",
    lr: float | Sequence[float] = 1e-3,
    max_epochs: int = 10,
    optimizer: OptimizerFactory = torch.optim.AdamW,
    norm: NormMode = "train",
    patience: int | None = None,
    seed: int = 0,
    results_dir: str | Path = "results",
    quiet: bool = False,
    **trainer: Any,
) -> list[Record]:
    """Train scopes side by side on any data and return their records, which are saved as well.

    What is recorded already is trained again: whether data of your own are still the same, nobody can tell.

    Args:
        backbone: What `load_backbone` returned; it stays as it is.
        partition: What `make_partition` returned for it.
        scopes: A scope or a list of them, as for `block=` on the command line: `"all"`, `["head", 3, "full"]`.
        data: A LightningDataModule, or DataLoaders called `train`, `val` and `test`. Batches are images, normalised,
            shape (batch, 3, size, size), and labels, shape (batch,).
        classes: Names of the classes, in the order of their labels.
        data_name: What to call the data in records.
        lr: Learning rate, or several: each scope is trained with each.
        max_epochs: Epochs, the same for all.
        optimizer: Makes an optimizer of parameter groups; each group has its own `lr`.
        norm: Norms of trained blocks: `train` (batch statistics) or `eval`.
        patience: Stop a scope after so many epochs without a better validation accuracy.
        seed: Decides the head's first weights and dropout; the order of images is up to the data.
        results_dir: Where records go.
        quiet: Show no progress.
        trainer: Further settings of Lightning's Trainer, as `accelerator="cpu"` or `precision="bf16-mixed"`.

    Raises:
        InputError: A scope that the partition does not have, a setting that is not as it must be, data without one of
            the three splits, or with batches of another shape.
    """
    silence_hints()
    keep_freed_memory()
    rates, classes = api_checks.check_rates(lr), api_checks.check_classes(classes)
    max_epochs = api_checks.check("trainer.max_epochs", "max_epochs", max_epochs)
    patience = api_checks.check("early_stopping.patience", "patience", patience)
    seed = api_checks.check("seed", "seed", seed)
    api_checks.check("freeze.norm", "norm", norm)
    api_checks.check("data.name", "data_name", data_name)
    api_checks.check_optimizer(optimizer)
    api_checks.check_partition(backbone, partition)
    api_checks.check_data(data)
    given = trainer.pop("callbacks", None) or []
    callbacks = [given] if isinstance(given, L.Callback) else list(given)
    if isinstance(data, L.LightningDataModule):
        callbacks.append(api_checks.LookAtBatches(len(classes), backbone.images.size))
    else:
        api_checks.check_loaders(data, len(classes), backbone.images.size)
    found = parse_scopes(scopes, len(partition), backbone.name)
    if waiting := [scope.name for scope in found if scope.top is not None]:
        raise InputError(
            f"{waiting[0]} needs the records of other scopes: train them first, and name the blocks as 3+7"
        )
    cells = [Cell(scope, float(rate)) for scope in found for rate in rates]
    loaders = _loaders(data)
    store = ResultStore(results_dir)
    common = {
        "model": {"name": backbone.name, "weights": backbone.weights},
        "data": {"name": data_name, "classes": classes, "image_size": backbone.images.size},
        "partition": {"name": partition.name, "num_blocks": len(partition)},
        "optimizer": getattr(optimizer, "__name__", str(optimizer)),
        "freeze": {"norm": norm},
        "early_stopping": {"patience": patience},
        "trainer": {"max_epochs": max_epochs, "precision": str(trainer.get("precision", "32-true"))},
        "seed": seed,
    }

    def settings(cell: Cell) -> dict[str, Any]:
        return {**common, "scope": cell.scope.name, "blocks": list(cell.scope.blocks), "lr": cell.lr}

    staged = _stage(backbone, partition)
    for group in [[cell] for cell in cells] if staged.whole else [cells]:
        module = BlockwiseModule(staged, group, len(classes), optimizer, norm=norm, patience=patience, seed=seed)
        with ProgressDisplay(Console(quiet=quiet), f"{backbone.name} on {data_name}") as display:
            fitting = _trainer({"max_epochs": max_epochs, "callbacks": [display, *callbacks], **BARE, **trainer})
            counts = _fit_and_test(fitting, module, loaders)
        api_checks.check_outcome(module)
        entry = {
            "name": data_name,
            "classes": len(classes),
            "image_size": backbone.images.size,
            **counts,
            "skipped": [],
        }
        Recorder(backbone, entry, classes, settings).save(store, module)
    return [record for cell in cells if (record := store.find(settings(cell))) is not None]


def fine_tuned(backbone: Backbone, record: Record) -> nn.Module:
    """Return the classifier that a record is of: images in, shape (batch, 3, size, size), logits out, (batch, classes).

    Args:
        backbone: The one that was fine-tuned, as `load_backbone` returns it.
        record: From `train_scopes` or `blockwise.results.read_records`: its `folder` holds the weights.

    Raises:
        InputError: The weights are gone, or of another backbone.
    """
    from safetensors.torch import load_file

    try:
        trained = load_file(Path(record["folder"], "weights.safetensors"))
    except OSError as error:
        raise InputError(f"{record['folder']} holds no weights: the cell diverged, or they were removed") from error
    weight = trained["head.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({name: trained.pop(f"head.{name}") for name in ("weight", "bias")})
    network = copy.deepcopy(backbone.network)
    known = network.state_dict()
    if odd := [name for name, tensor in trained.items() if name not in known or known[name].shape != tensor.shape]:
        raise InputError(f"{record['folder']} was trained on another network than {backbone.name}: it has no {odd[0]}")
    network.load_state_dict(trained, strict=False)
    return nn.Sequential(OrderedDict(backbone=network, head=head)).eval()


def run_study(*overrides: str) -> pd.DataFrame:
    """Do what `python train.py` does with these settings, and return what is recorded of it; see `read_records`.

    Args:
        overrides: As on the command line: `"model=vgg16"`, `"data=digits"`, `"block=[head,3,full]"`.

    Raises:
        InputError: A setting that is not as it must be.
    """
    from blockwise.analysis.frame import records_frame

    silence_hints()
    keep_freed_memory()
    return records_frame(study.run(config.compose_config(list(overrides)), Console()))


def read_records(folder: str | Path = "results") -> pd.DataFrame:
    """Return the records below a folder, a line each; `blockwise.analysis.frame` names the columns.

    Raises:
        InputError: There are none.
    """
    from blockwise.analysis.frame import records_frame

    return records_frame(results.read_records(folder))


def plot_accuracy_by_block(folder: str | Path = "results") -> Figure:
    """Draw the accuracy of every block beside both baselines, a panel a sweep below a folder.

    Raises:
        InputError: There are no records.
    """
    return accuracy_by_block([sweep for sweep in sweeps(results.read_records(folder)) if sweep.rows])


def _stage(backbone: Backbone, partition: Partition) -> StagedBackbone:
    """Cut a copy: frozen stages are made fast in place, and the backbone may be used again."""
    network = copy.deepcopy(backbone.network)
    size = backbone.images.size
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        return stage_backbone(network, partition, example)
    except CannotStageError as error:
        warnings.warn(f"{backbone.name} cannot be cut ({error}): its scopes train one at a time", stacklevel=3)
        return whole_backbone(network, partition, example)


def _loaders(data: Data) -> Any:
    """Return what hands the trainer its data, split by split."""
    if isinstance(data, L.LightningDataModule):
        return lambda *_: {"datamodule": data}
    names = {"train": "train_dataloaders", "val": "val_dataloaders", "test": "dataloaders"}
    return lambda *splits: {names[split]: data[split] for split in splits}


def _trainer(options: dict[str, Any]) -> L.Trainer:
    try:
        return L.Trainer(**options)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"Lightning's trainer refuses its settings: {error}") from error


def _fit_and_test(trainer: L.Trainer, module: BlockwiseModule, loaders: Any) -> dict[str, int]:
    """Train, test what has not diverged, and return the number of images of each split."""
    trainer.fit(module, **loaders("train", "val"))
    counts = {"train": _count(trainer.train_dataloader), "val": _count(trainer.val_dataloaders), "test": 0}
    if any(progress.status in ("running", "stopped") for progress in module.progress):
        trainer.test(module, **loaders("test"), verbose=False)
        counts["test"] = _count(trainer.test_dataloaders)
    return counts


def _count(loader: Any) -> int:
    """Return the number of images behind a loader; 0 where it does not know."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return 0
