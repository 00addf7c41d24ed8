"""The trainer of a Python user: Lightning's settings, checked, with our own callbacks added."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from blockwise.data import BlockwiseDataModule
from blockwise.data.loaders import LoaderDataModule
from blockwise.errors import InputError
from blockwise.study.study import TrainerFactory
from blockwise.training.distributed import SideBySideStrategy, count_processes, init_process_group, launched


def trainer_factory(options: Mapping[str, Any], data: L.LightningDataModule) -> TrainerFactory:
    """Return what makes trainers with the user's options, and start distributed training where it is asked for.

    Raises:
        InputError: Lightning refuses an option, or several devices need another start or other data.
    """
    settings = dict(options)
    if count_processes(settings.get("devices")) > 1:
        if not launched():
            raise InputError(
                f"devices={settings['devices']} needs one process per device: start your script with "
                f"torchrun --nproc-per-node={settings['devices']}"
            )
        if not isinstance(data, (BlockwiseDataModule, LoaderDataModule)):
            raise InputError("several devices need DataLoaders or a BlockwiseDataModule, whose batches they can share")
        settings.setdefault("strategy", SideBySideStrategy())
        settings["use_distributed_sampler"] = False  # the data modules share each batch
    factory = partial(_make_trainer, settings)
    init_process_group(factory().strategy.root_device)
    return factory


def _make_trainer(settings: Mapping[str, Any], **options: Any) -> L.Trainer:
    """Return a new trainer; callbacks and plugins are added to the user's, other options override them."""
    merged = {**settings, **options}
    for key in ("callbacks", "plugins"):
        merged[key] = [*_as_list(settings.get(key)), *_as_list(options.get(key))]
    try:
        return L.Trainer(**merged)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"Lightning's trainer refuses its settings: {error}") from error


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
