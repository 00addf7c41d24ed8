"""Learning rate schedules: PyTorch's schedulers, each after a linear warm-up.

A schedule of your own is any class or function that takes an optimizer and returns one of PyTorch's schedulers. If it
has parameters named `total_steps` or `steps_per_epoch`, they get the number of optimizer steps after the warm-up and
the number per epoch, unless you set them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from blockwise.errors import InputError

Unit = Literal["epoch", "step"]


def constant(optimizer: Optimizer) -> LRScheduler:
    """Keep the rates."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def cosine(optimizer: Optimizer, total_steps: int, min_lr: float = 0.0) -> LRScheduler:
    """Let the rates fall to `min_lr` along half a cosine (Loshchilov & Hutter, 2017, "SGDR", section 3)."""
    return CosineAnnealingLR(optimizer, total_steps, min_lr)


def onecycle(optimizer: Optimizer, total_steps: int, rise: float = 0.3) -> LRScheduler:
    """Let the rates rise from 1/25 for a share `rise` of all steps, then fall to nearly 0 (Smith & Topin, 2018)."""
    highest = [group["lr"] for group in optimizer.param_groups]
    momentum = {"momentum", "betas"} & optimizer.defaults.keys()
    return OneCycleLR(optimizer, highest, total_steps, pct_start=float(rise), cycle_momentum=bool(momentum))


def step(optimizer: Optimizer, steps_per_epoch: int, every: int, gamma: float = 0.1) -> LRScheduler:
    """Multiply the rates by `gamma` after every `every` epochs."""
    return StepLR(optimizer, every * steps_per_epoch, gamma)


@dataclass(frozen=True)
class Schedule:
    """The learning rate schedule of a cell.

    Attributes:
        make: Makes one of PyTorch's schedulers from an optimizer.
        warmup: Length of the linear warm-up before it, in `warmup_unit`s.
        warmup_unit: `epoch` or `step`.
        interval: Whether the scheduler advances after each `step` or after each `epoch`.

    Raises:
        InputError: A value is invalid.
    """

    make: Callable[..., Any]
    warmup: float = 0
    warmup_unit: Unit = "epoch"
    interval: Unit = "step"

    def __post_init__(self) -> None:
        whole = self.warmup_unit == "step" or self.interval == "epoch"
        if whole and self.warmup != int(self.warmup):
            raise InputError(f"scheduler.warmup={self.warmup} must be a whole number of {self.warmup_unit}s")
        if self.interval == "epoch" and self.warmup_unit == "step" and self.warmup:
            raise InputError("scheduler.warmup_unit=step does not fit scheduler.interval=epoch: give epochs")

    def __call__(self, optimizer: Optimizer, max_epochs: int, steps_per_epoch: int) -> LRScheduler:
        """Return the scheduler of an optimizer.

        Raises:
            InputError: The warm-up is as long as training, or the scheduler refuses its settings.
        """
        per_epoch = 1 if self.interval == "epoch" else steps_per_epoch
        warmup = round(self.warmup * per_epoch) if self.warmup_unit == "epoch" else int(self.warmup)
        total = max_epochs * per_epoch
        if warmup >= total:
            raise InputError(
                f"scheduler.warmup={self.warmup:g} {self.warmup_unit}s is not shorter than training: {max_epochs} "
                f"epochs of {steps_per_epoch} steps"
            )
        scheduler = self._make(optimizer, total_steps=total - warmup, steps_per_epoch=steps_per_epoch)
        if not warmup:
            return scheduler
        first = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        return SequentialLR(optimizer, [first, scheduler], [warmup])

    def _make(self, optimizer: Optimizer, **lengths: int) -> LRScheduler:
        try:
            given = getattr(self.make, "keywords", {})
            known = {
                k: v for k, v in lengths.items() if k in inspect.signature(self.make).parameters and k not in given
            }
            scheduler = self.make(optimizer, **known)
        except Exception as error:  # a scheduler may be the user's own
            reason = " ".join(str(error).split("\n")[0].split())
            raise InputError(f"the scheduler cannot be created ({reason}): check the scheduler settings") from error
        if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
            raise InputError(
                f"scheduler: {type(scheduler).__name__} cannot be used: choose one of PyTorch's whose `step` needs no "
                "metric"
            )
        return scheduler

    def check(self, make_optimizer: Callable[..., Optimizer], max_epochs: int, steps_per_epoch: int) -> None:
        """Check the schedule on an optimizer of one parameter.

        Raises:
            InputError: The warm-up is as long as training, or the scheduler refuses its settings.
        """
        self(
            make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3}]), max_epochs, steps_per_epoch
        )
