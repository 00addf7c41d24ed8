"""One cell on one batch: its forward pass, its backward pass and its optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockwise.backbone.stages import Activations, StagedBackbone
from blockwise.recipe.recipe import Recipe
from blockwise.training.cells import CellNetwork
from blockwise.training.distributed import sum_gradients


class CellStep:
    """Trains one cell on batches.

    Args:
        backbone: The frozen network.
        network: The cell's own stages and head.
        optimizer: The cell's optimizer.
        recipe: How the cell trains.
        scaled: Scale the loss, so that gradients do not vanish in float16. Each cell has a scaler of its own, since a
            scaler skips the steps of all that share it.

    Attributes:
        scaler: The scaler of the loss.
        scheduler: The learning rate schedule; None keeps the rates.
    """

    def __init__(
        self, backbone: StagedBackbone, network: CellNetwork, optimizer: Optimizer, recipe: Recipe, *, scaled: bool
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.scaler = GradScaler("cuda", enabled=scaled)
        self.scheduler: LRScheduler | None = None
        self._backbone = backbone
        self._recipe = recipe
        self._rates: list[Tensor] = []

    def train(self, activations: Activations, labels: Tensor, fraction: float = 1.0) -> Tensor:
        """Train on a batch and return the logits, shape (batch, classes).

        Args:
            activations: The activations at the cell's boundary.
            labels: The labels.
            fraction: The fraction of the batch that this process has.
        """
        logits = self.network(self._backbone, activations)
        self.scaler.scale(fraction * self._recipe.loss(logits, labels)).backward()
        self.update()
        return logits.detach()

    def seed(self, seed: int) -> None:
        """Seed the generators from which the network draws, such as for dropout."""
        torch.default_generator.manual_seed(seed)
        if self.optimizer.param_groups[0]["params"][0].device.type != "cpu":
            torch.manual_seed(seed)  # of all devices; while there is no GPU, PyTorch takes 0.3 ms for it

    def sit_out(self) -> None:
        """Take part in the sum of gradients without an image of the batch."""
        self.scaler.scale(torch.zeros((), device=self.network.trainable()[0].device))  # else it refuses its first step
        self.update()

    def update(self) -> None:
        """Update the weights from the gradients of all processes."""
        parameters = self.network.trainable()
        sum_gradients(parameters)
        if self._recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(parameters, self._recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def state(self, *, goes_on: bool = True) -> dict[str, Any]:
        """Return what a checkpoint keeps, besides the state of the optimizer.

        Args:
            goes_on: Whether the cell still trains; otherwise its weights are left out.
        """
        schedule = {} if self.scheduler is None else {"scheduler": self.scheduler.state_dict()}
        trained = self.network.trained_state() if goes_on else {}
        return {"trained": trained, "scaler": self.scaler.state_dict(), **schedule}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the scaler and the schedule from what `state` returned."""
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.scheduler is not None and "scheduler" in state:
            self.scheduler.load_state_dict(state["scheduler"])

    def changed(self) -> list[list[Tensor]]:
        """Return all tensors that a step changes: weights and norm statistics; the states of optimizer and scaler."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        # a scaler has no other way to restore its state in place; one that is off has none
        scales = [getattr(self.scaler, name, None) for name in ("_scale", "_growth_tracker")]
        rest = [value for value in states + scales if isinstance(value, Tensor)]
        return [list(self.network.trained_state().values()), rest]

    def numbers(self) -> list[Any]:
        """Return what the optimizer reads that is no tensor, such as its momentum; a graph cannot see it change."""
        keys = {"params", "capturable", *(["lr"] if self._recipe.scheduler is not None else [])}
        groups = [[value for key, value in group.items() if key not in keys] for group in self.optimizer.param_groups]
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*groups, [value for value in states if not isinstance(value, Tensor)]]

    def count_on_device(self) -> None:
        """Let the optimizer count its steps on the GPU, as a CUDA graph needs; a checkpoint may come from a CPU."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = group["params"][0].device.type == "cuda"
        for parameter, state in self.optimizer.state.items():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(parameter.device)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Let the optimizer read scheduled learning rates from the device, as a CUDA graph needs."""
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        self._rates = [torch.zeros((), device=group["params"][0].device) for group in groups]
        self.copy_rates()
        if self._recipe.scheduler is not None:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
        try:
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate

    def copy_rates(self) -> None:
        """Copy scheduled learning rates to the device, where a CUDA graph reads them."""
        if self._recipe.scheduler is not None:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                rate.fill_(group["lr"])

    def abandon(self) -> None:
        """Clear what a step that failed has left."""
        for parameter in self.network.parameters():
            parameter.grad = None
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()  # else it refuses the next step
