"""All settings that change a cell's result; they are stored in its record and determine its hash.

Settings that do not change the result are left out: number of workers, loggers, device, folder of the data, and which
cells train side by side. The command line and the Python API write the same keys.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import TensorDataset

from blockwise.backbone.load import Backbone
from blockwise.backbone.partition import Partition
from blockwise.data import BlockwiseDataModule
from blockwise.data.loaders import LoaderDataModule
from blockwise.data.resumable import SPLITS
from blockwise.training.module import OptimizerFactory

DATA = ("name", "train_per_class", "val_per_class", "test_per_class", "batch_size", "augment", "skip_broken")
# settings of a trainer that do not change the result
NO_EFFECT = frozenset(
    "_target_ accelerator devices num_nodes strategy use_distributed_sampler logger callbacks default_root_dir "
    "enable_checkpointing enable_progress_bar enable_model_summary num_sanity_val_steps log_every_n_steps "
    "profiler".split()
)


def config_settings(
    cfg: dict[str, Any], backbone: Backbone, data: BlockwiseDataModule, partition: str
) -> dict[str, Any]:
    """Return the settings that all cells of a config share; the study adds scope, blocks and learning rate per cell."""
    model, images = cfg["model"], data.images
    return {
        "model": {
            "name": backbone.name,
            "source": model["source"],
            "architecture": model["architecture"] or model["name"],
            "weights": backbone.weights,
        },
        "data": {
            **{key: cfg["data"][key] for key in DATA},
            "fingerprint": data.splits.fingerprint,
            "image_size": images.size,
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
        },
        "partition": {"name": partition, **_without(cfg["partition"], {"_target_"})},
        "optimizer": {
            "name": cfg["optimizer"]["_target_"],
            **_without(cfg["optimizer"], {"_target_", "_partial_", "lr"}),
        },
        "freeze": cfg["freeze"],
        "early_stopping": cfg["early_stopping"],
        "trainer": _without(cfg["trainer"], NO_EFFECT),
        "seed": cfg["seed"],
    }


def _without(settings: Mapping[str, Any], keys: set[str] | frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def python_settings(
    backbone: Backbone,
    partition: Partition,
    data: L.LightningDataModule,
    optimizer: OptimizerFactory,
    *,
    data_name: str,
    data_version: str | None,
    classes: Sequence[str],
    norm: str,
    patience: int | None,
    seed: int,
    trainer: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings that all cells of a `train_scopes` call share, under the keys of `config_settings`."""
    callbacks = trainer.get("callbacks") or []
    callbacks = [callbacks] if isinstance(callbacks, L.Callback) else callbacks
    return {
        "model": {"name": backbone.name, "weights": backbone.weights},
        "data": {
            "name": data_name,
            "version": data_version,
            "classes": list(classes),
            "image_size": backbone.images.size,
            **describe_data(data),
        },
        "partition": {"name": partition.name, "blocks": [[block.first, block.last] for block in partition.blocks]},
        "optimizer": describe_optimizer(optimizer),
        "freeze": {"norm": norm},
        "early_stopping": {"patience": patience},
        "trainer": {
            "precision": "32-true",
            **describe(_without(trainer, NO_EFFECT)),
            **({"callbacks": describe(callbacks)} if callbacks else {}),
        },
        "seed": seed,
    }


def describe_data(data: L.LightningDataModule) -> dict[str, Any]:
    """Return the settings that describe the images and their batches.

    They include a hash of the images' content for a `BlockwiseDataModule` and for loaders over a `TensorDataset`. For
    other loaders they include the number of images, batch size, and class names of data set and sampler. For other data
    modules they include the class name and the hyperparameters.
    """
    if isinstance(data, BlockwiseDataModule):
        names = [[sample.name for sample in getattr(data.splits, split)] for split in SPLITS]
        images = data.images
        return {
            "fingerprint": data.splits.fingerprint,
            "splits": _hash(names),
            "batch_size": data.batch_size,
            "augment": list(data.augment),
            "skip_broken": data.skip_broken,
            "seed": data.seed,
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
        }
    if isinstance(data, LoaderDataModule):
        return {split: _describe_loader(data.loaders[split]) for split in SPLITS}
    return {"module": describe(data), "hyperparameters": describe(dict(data.hparams))}


def describe_optimizer(optimizer: OptimizerFactory) -> dict[str, Any]:
    """Return the class and the options of the optimizers that a factory makes.

    The factory is called with one group for the head and one for the blocks. If their options differ, both are kept.
    """
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3} for _ in range(2)]
    example = optimizer(groups)
    options = [{k: describe(v) for k, v in g.items() if k not in ("params", "lr")} for g in example.param_groups]
    rates = [group["lr"] for group in example.param_groups]
    differ = {} if rates == [1e-3, 1e-3] else {"rates": [rate / 1e-3 for rate in rates]}
    options = options[:1] if all(group == options[0] for group in options) else options
    return {"name": _name(type(example)), **(options[0] if len(options) == 1 else {"groups": options}), **differ}


def describe(value: Any) -> Any:
    """Convert a value to plain JSON data; equal values give equal results in every process.

    >>> describe({"rate": (1, 2.5)}), describe(torch.optim.SGD), describe(partial(torch.optim.SGD, momentum=0.9))
    ({'rate': [1, 2.5]}, 'torch.optim.sgd.SGD', {'name': 'torch.optim.sgd.SGD', 'options': {'momentum': 0.9}})
    """
    if _is_simple(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return _hash_tensor(value)
    if isinstance(value, partial):
        options = {**({"arguments": describe(value.args)} if value.args else {}), **describe(value.keywords)}
        return {"name": describe(value.func), "options": options}
    if isinstance(value, types.FunctionType):
        return {"name": _name(value), "code": _hash(_code(value.__code__))}
    if hasattr(value, "__qualname__"):
        return _name(value)
    entries = getattr(value, "__dict__", {})
    simple = {key: entry for key, entry in entries.items() if key[0] != "_" and _is_simple(entry)}
    return {"name": _name(type(value)), **({"options": simple} if simple else {})}


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _describe_loader(loader: Any) -> dict[str, Any]:
    dataset = getattr(loader, "dataset", None)
    entry = {"batches": len(loader), "batch_size": getattr(loader, "batch_size", None), "dataset": _name(type(dataset))}
    entry["sampler"] = _name(type(getattr(loader, "sampler", None)))
    if dataset is not None and hasattr(dataset, "__len__"):
        entry["images"] = len(dataset)
    if isinstance(dataset, TensorDataset):
        entry["fingerprint"] = _hash([_hash_tensor(tensor) for tensor in dataset.tensors])
    return entry


def _name(value: Callable[..., Any] | type) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _hash_tensor(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _hash([str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(content.tobytes()).hexdigest()])


def _code(code: types.CodeType) -> list[Any]:
    """Return the bytecode, names and constants of a function, without its file and line numbers."""
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]
