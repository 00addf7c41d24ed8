"""Learning rate schedules: PyTorch's schedulers, each after a linear warm-up.

A schedule of your own is any class or function that takes an optimizer and returns one of PyTorch's schedulers. If it
has parameters named `total_steps` or `steps_per_epoch`, they get the number of its steps after the warm-up and the
number per epoch, unless you set them. With `interval=epoch`, one of its steps is an epoch.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

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

from blockwise.errors import InputError, check_whole, first_line, is_number

Unit = Literal["epoch", "step"]
# steps of a schedule that are tried before training
MOST_STEPS = 20_000


def constant(optimizer: Optimizer) -> LRScheduler:
    """Keep the rates."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def cosine(optimizer: Optimizer, total_steps: int, min_lr: float = 0.0) -> LRScheduler:
    """Let the rates fall to `min_lr` along half a cosine (Loshchilov & Hutter, 2017, "SGDR", section 3).

    Raises:
        InputError: `min_lr` is not a number between 0 and the lowest rate.
    """
    lowest = min(group["lr"] for group in optimizer.param_groups)
    if not is_number(min_lr) or not 0 <= min_lr <= lowest:
        raise InputError(f"scheduler.min_lr={min_lr} must be between 0 and the lowest learning rate, {lowest:g}")
    return CosineAnnealingLR(optimizer, total_steps, min_lr)


def onecycle(optimizer: Optimizer, total_steps: int, rise: float = 0.3) -> LRScheduler:
    """Let the rates rise from 1/25 for a share `rise` of all steps, then fall to nearly 0 (Smith & Topin, 2018).

    The momentum stays as it is.

    Raises:
        InputError: `rise` is not a number between 0 and 1.
    """
    if not is_number(rise) or not 0 < rise < 1:
        raise InputError(f"scheduler.rise={rise} must be a number between 0 and 1")
    highest = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, highest, total_steps, pct_start=float(rise), cycle_momentum=False)


def step(optimizer: Optimizer, steps_per_epoch: int, every: int, gamma: float = 0.1) -> LRScheduler:
    """Multiply the rates by `gamma` after every `every` epochs.

    Raises:
        InputError: `every` is not an integer of at least 1, or `gamma` not a number between 0 and 1.
    """
    check_whole("scheduler.every", every, 1)
    if not is_number(gamma) or not 0 < gamma <= 1:
        raise InputError(f"scheduler.gamma={gamma} must be greater than 0 and at most 1")
    return StepLR(optimizer, every * steps_per_epoch, gamma)


@dataclass(frozen=True)
class Schedule:
    """The learning rate schedule of a cell.

    Attributes:
        make: Makes one of PyTorch's schedulers from an optimizer.
        warmup: Length of the linear warm-up before it, in units of `warmup_unit`.
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
        if not callable(self.make):
            raise InputError(f"scheduler: {self.make!r} cannot be called with an optimizer")
        if not is_number(self.warmup) or self.warmup < 0:
            raise InputError(f"scheduler.warmup={self.warmup} must be a number of at least 0")
        for name in ("warmup_unit", "interval"):
            if getattr(self, name) not in get_args(Unit):
                raise InputError(f"scheduler.{name}={getattr(self, name)} must be {' or '.join(get_args(Unit))}")
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
        per_epoch = self._per_epoch(steps_per_epoch)
        warmup = math.ceil(self.warmup * per_epoch) if self.warmup_unit == "epoch" else int(self.warmup)
        total = max_epochs * per_epoch
        if warmup >= total:
            raise InputError(
                f"scheduler.warmup={self.warmup:g} {self.warmup_unit}s is not shorter than training: {max_epochs} "
                f"epochs of {steps_per_epoch} steps"
            )
        scheduler = self._make(optimizer, total_steps=total - warmup, steps_per_epoch=per_epoch)
        if not warmup:
            return scheduler
        first = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        return SequentialLR(optimizer, [first, scheduler], [warmup])

    def _per_epoch(self, steps_per_epoch: int) -> int:
        """Return how often the scheduler advances in an epoch."""
        return 1 if self.interval == "epoch" else steps_per_epoch

    def _make(self, optimizer: Optimizer, **lengths: int) -> LRScheduler:
        given = getattr(self.make, "keywords", {})
        parameters = inspect.signature(getattr(self.make, "func", self.make)).parameters
        if unknown := [] if _takes_any(parameters) else [key for key in given if key not in parameters]:
            raise InputError(f"the scheduler has no setting {unknown[0]}: its settings are {', '.join(parameters)}")
        try:
            known = {key: value for key, value in lengths.items() if key in parameters and key not in given}
            scheduler = self.make(optimizer, **known)
        except InputError:
            raise
        except Exception as error:  # a scheduler may be the user's own
            raise InputError(f"the scheduler cannot be created ({first_line(error)}): check its settings") from error
        if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
            raise InputError(
                f"scheduler: {type(scheduler).__name__} cannot be used: choose one of PyTorch's whose `step` needs no "
                "metric"
            )
        return scheduler

    def check(
        self, make_optimizer: Callable[..., Optimizer], rates: Sequence[float], max_epochs: int, steps_per_epoch: int
    ) -> None:
        """Go through the schedule with optimizers of one parameter.

        Args:
            make_optimizer: Makes an optimizer from parameter groups.
            rates: The learning rates.
            max_epochs: Number of epochs.
            steps_per_epoch: Number of steps per epoch.

        Raises:
            InputError: The warm-up is as long as training, the scheduler refuses its settings or fails at a step, or a
                rate is negative or not finite.
        """
        steps = min(MOST_STEPS, max_epochs * self._per_epoch(steps_per_epoch))
        for rate in rates:
            optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate}])
            scheduler = self(optimizer, max_epochs, steps_per_epoch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer takes no steps here
                _go_through(optimizer, scheduler, steps)


def _go_through(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> None:
    for step in range(steps):
        current = float(optimizer.param_groups[0]["lr"])
        if not 0 <= current < math.inf:
            raise InputError(f"the scheduler sets the rate to {current:g} at step {step}: check its settings")
        try:
            scheduler.step()
        except Exception as error:  # a scheduler may be the user's own
            raise InputError(f"the scheduler fails at step {step} ({first_line(error)})") from error


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
