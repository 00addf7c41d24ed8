"""What Python code hands over and cannot be right, refused in one sentence before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from blockwise.backbones import Backbone
from blockwise.checks import CHECKS
from blockwise.errors import InputError
from blockwise.module import BlockwiseModule
from blockwise.partition import Partition

SPLITS = ("train", "val", "test")


def check(key: str, name: str, value: Any) -> Any:
    """Check an argument as the setting `key` is checked, and return it, a number of NumPy's as one of Python's.

    Raises:
        InputError: It is not what it must be.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
    CHECKS[key](name, value)
    return value


def check_rates(lr: Any) -> list[float]:
    """Return a learning rate, or several, as a list.

    Raises:
        InputError: They are no numbers greater than 0, or one is named twice.
    """
    values = [lr] if isinstance(lr, (Real, str)) or not isinstance(lr, Iterable) else list(lr)
    rates: list[Any] = [
        float(value) if isinstance(value, Real) and not isinstance(value, bool) else value for value in values
    ]
    CHECKS["optimizer.lr"]("lr", rates)
    return rates


def check_classes(classes: Any) -> list[str]:
    """Return the names of the classes.

    Raises:
        InputError: They are not two or more different names.
    """
    names = [] if isinstance(classes, str) or not isinstance(classes, Iterable) else [str(name) for name in classes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"classes={classes!r} must be a list of two or more names, each of them once")
    return names


def check_optimizer(optimizer: Any) -> None:
    """Make an optimizer of a parameter.

    Raises:
        InputError: It cannot be made.
    """
    try:
        optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3}])
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer={optimizer!r} makes no optimizer of parameter groups ({error})") from error


def check_network(network: nn.Module, size: int) -> nn.Module:
    """Run a network on images of a size, and return it.

    Raises:
        InputError: It does not map them to a vector of features each.
    """
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"the network does not take images of {size} pixels ({error})") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"the network must map images to features of shape (images, features), not {given}")
    return network


def check_partition(backbone: Any, partition: Any) -> None:
    """Make sure that a partition is of a backbone.

    Raises:
        InputError: It is not.
    """
    if not isinstance(backbone, Backbone) or not isinstance(partition, Partition):
        raise InputError("give what load_backbone and make_partition have returned")
    own = {name for name, _ in backbone.network.named_parameters()}
    if {name for layer in partition.layers for name in layer.parameters} != own:
        raise InputError(f"the partition is not of {backbone.name}: make it with make_partition(backbone)")


def check_data(data: Any) -> None:
    """Make sure that data have all three splits.

    Raises:
        InputError: One is missing.
    """
    if isinstance(data, L.LightningDataModule):
        missing = [split for split in SPLITS if not is_overridden(f"{split}_dataloader", data, L.LightningDataModule)]
    elif isinstance(data, Mapping):
        missing = [split for split in SPLITS if data.get(split) is None]
    else:
        raise InputError("data must be a LightningDataModule, or DataLoaders called train, val and test")
    if missing:
        raise InputError(f"data lacks {', '.join(missing)}: give DataLoaders called train, val and test")


def check_loaders(data: Mapping[str, Any], classes: int, size: int) -> None:
    """Look at the first batch of each split; random numbers go on as if nobody had.

    Raises:
        InputError: There is none, or it is not what `check_batch` asks for.
    """
    for split in SPLITS:
        with torch.random.fork_rng(devices=[]):
            try:
                batch = next(iter(data[split]))
            except (StopIteration, TypeError) as error:
                raise InputError(f"data[{split!r}] gives no batch of images and labels") from error
        check_batch(split, batch, classes, size)


def check_batch(split: str, batch: Any, classes: int, size: int) -> None:
    """Look at a batch: images, normalised, of shape (batch, 3, size, size), and labels, of shape (batch,).

    Raises:
        InputError: It is something else.
    """
    if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise InputError(f"a batch of {split} must be a pair of tensors, images and labels")
    images, labels = batch
    if not images.is_floating_point() or images.shape[1:] != (3, size, size):
        raise InputError(
            f"images of {split} must be floating point numbers of shape (batch, 3, {size}, {size}), "
            f"not {images.dtype} of {tuple(images.shape)}"
        )
    if labels.dtype != torch.long or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels of {split} must be torch.long of shape (batch,), not {labels.dtype} of {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels of {split} must lie between 0 and {classes - 1}, one for each of the classes")


class LookAtBatches(L.Callback):
    """Looks at the first batch of each split as it comes to the module: for data of which nobody knows before."""

    def __init__(self, classes: int, size: int) -> None:
        self._known = classes, size
        self._seen: set[str] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look."""
        self._look("train", batch, batch_idx)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Look."""
        self._look("val", batch, batch_idx)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Look."""
        self._look("test", batch, batch_idx)

    def _look(self, split: str, batch: Any, index: int) -> None:
        if index == 0 and split not in self._seen:
            self._seen.add(split)
            check_batch(split, batch, *self._known)


def check_outcome(module: BlockwiseModule) -> None:
    """Make sure that every cell has come to an end.

    Raises:
        InputError: One was not validated or not tested.
    """
    for cell, progress in zip(module.cells, module.progress, strict=True):
        if progress.status != "diverged" and (progress.best is None or progress.test is None):
            missing = "training and validation" if progress.best is None else "test"
            raise InputError(f"{cell.scope.name} has no result: there was no batch for {missing}")
