"""Several processes that train the same cells, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torchmetrics.utilities.distributed import gather_all_tensors

T = TypeVar("T")


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return the number of this process among them."""
    return distributed.get_rank() if several() else 0


def from_first(value: T) -> T:
    """Return what the first process has as `value`, in all of them."""
    if not several():
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def share(images: int, device: torch.device) -> float:
    """Return the part of a batch that this process has `images` of."""
    if not several():
        return 1.0
    total = torch.tensor(images, device=device)
    distributed.all_reduce(total)
    return images / int(total)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place: in one message, and each in its own memory format."""
    if not several():
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # this process had no image of the batch
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(message)
    for gradient, summed in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view(gradient.shape))


def gathered(values: Tensor) -> Tensor:
    """Return the rows of all processes."""
    return torch.cat(gather_all_tensors(values)) if several() else values
