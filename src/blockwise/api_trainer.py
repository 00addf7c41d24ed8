"""The trainer of a study in Python: the user's trainer settings, plus blockwise's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from blockwise.api_checks import as_plain
from blockwise.config.checks import CHECKS, PRECISIONS, check_trainer
from blockwise.data.resumable import ResumableDataModule
from blockwise.errors import InputError
from blockwise.study.runs import TrainerFactory
from blockwise.training.distributed import SideBySideStrategy, count_processes, init_process_group, launched

# Lightning's other names of these precisions
ALIASES = (16, "16", "bf16", 32, "32")


def trainer_factory(options: Mapping[str, Any], data: L.LightningDataModule) -> TrainerFactory:
    """Return a function that makes trainers with the user's options; with several devices, join the process group.

    Raises:
        InputError: Lightning or blockwise refuses an option. Or, with several devices, the script was not started with
            torchrun or the batches cannot be shared.
    """
    settings = {"devices": 1, **options}  # to Lightning, the default is all GPUs
    settings["devices"] = as_plain(settings["devices"])
    _check(settings)
    if count_processes(settings["devices"]) > 1:
        if not launched():
            raise InputError(
                f"devices={settings['devices']} needs one process per device: start your script with "
                f"torchrun --nproc-per-node={settings['devices']}"
            )
        if not isinstance(data, ResumableDataModule):
            raise InputError("to train on several devices, pass DataLoaders or a BlockwiseDataModule")
        settings["use_distributed_sampler"] = False  # the data modules split each batch themselves
    factory = partial(_make_trainer, settings)
    init_process_group(factory().strategy.root_device)
    return factory


def _check(settings: Mapping[str, Any]) -> None:
    CHECKS["trainer.devices"]("devices", settings["devices"])
    precision = settings.get("precision") or PRECISIONS[0]
    if precision not in ALIASES:
        CHECKS["trainer.precision"]("precision", precision)
    strategy = settings.get("strategy", "auto")
    if strategy not in (None, "auto") and not isinstance(strategy, SideBySideStrategy):
        raise InputError(f"strategy={strategy} cannot train cells side by side: leave it out")
    check_trainer(settings)


def _make_trainer(settings: Mapping[str, Any], **options: Any) -> L.Trainer:
    """Return a new trainer; callbacks and plugins are added to the user's, other options override the user's."""
    merged = {**settings, **options}
    for key in ("callbacks", "plugins"):
        merged[key] = [*_as_list(settings.get(key)), *_as_list(options.get(key))]
    if count_processes(merged["devices"]) > 1 and merged.get("strategy") in (None, "auto"):
        merged["strategy"] = SideBySideStrategy()  # each trainer needs its own
    try:
        return L.Trainer(**merged)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"Lightning's trainer refuses its settings: {error}") from error


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
