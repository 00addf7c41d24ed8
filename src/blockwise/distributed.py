"""Several processes that train the same cells, each on its part of every batch.

Torch's own wrapper for this takes one forward and one backward pass a step; a step of ours has one of each for every
cell. So the network stays as it is, and the gradients of a cell are added up after its backward pass.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torchmetrics.utilities.distributed import gather_all_tensors

T = TypeVar("T")


class SideBySideStrategy(DDPStrategy):
    """Lightning's strategy for several processes, without torch's wrapper around the module."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def count_processes(devices: object) -> int:
    """Return how many processes a run on these devices has: a number of them, or a list that names one."""
    return devices if isinstance(devices, int) else 1


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `blockwise train` in several processes of this machine and return the exit code.

    Where torchrun starts them, on several machines for instance, each finds its number in the environment.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # what went wrong, the processes say themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="blockwise",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "blockwise.train", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def launched() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ


def begin(device: torch.device) -> None:
    """Meet the other processes, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return the number of this process among them, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


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
