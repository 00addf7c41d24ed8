"""Distributed training: several processes train the same cells, each on its part of every batch.

DistributedDataParallel expects one forward and one backward pass per step, but here a step has one of each per cell. So
the network is not wrapped, and the gradients of a cell are summed over processes after its backward pass.
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
    """Lightning's DDP strategy, without wrapping the module in DistributedDataParallel."""

    def configure_ddp(self) -> None:
        """Do not wrap the module."""


def count_processes(devices: object) -> int:
    """Return the number of processes of a run; `devices` is a number of devices, or a list that names one."""
    return devices if isinstance(devices, int) else 1


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `blockwise train` in several processes on this machine and return the exit code.

    On several machines, start the processes with torchrun instead; each reads its rank from the environment.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the processes report their errors themselves
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


def init_process_group(device: torch.device) -> None:
    """Join the process group, if this process is one of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # empty outputs, and those from a checkpoint, are on the CPU
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return the rank of this process, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


def broadcast(value: T) -> T:
    """Return the first process's `value` in all processes."""
    if not is_distributed():
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def batch_fraction(images: int, device: torch.device, least: int = 1) -> float | None:
    """Return the fraction of a batch that this process has, given its number of images.

    A process with fewer than `least` leaves them out.

    Returns:
        None if no process has images.
    """
    images = images if images >= least else 0
    total = images
    if is_distributed():
        summed = torch.tensor(images, device=device)
        distributed.all_reduce(summed)
        total = int(summed)
    return images / total if total else None


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over all processes, in place, with one all-reduce; each gradient keeps its memory format."""
    if not is_distributed():
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # this process got no image of the batch
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view(gradient.shape))


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes, in place, with one all-reduce."""
    if not is_distributed() or not (tensors := list(tensors)):
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def gather(values: Tensor) -> Tensor:
    """Return the rows of all processes, concatenated."""
    return torch.cat(gather_all_tensors(values)) if is_distributed() else values
