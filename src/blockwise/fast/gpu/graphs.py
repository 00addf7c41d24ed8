"""CUDA graphs: the kernels of a function, recorded once, then launched together.

Small networks at small batches leave a GPU waiting for the CPU, which launches kernels one at a time. A graph launches
all of them at once, and graphs on several streams run beside each other. (Nguyen et al. 2021, "Accelerating PyTorch
with CUDA Graphs".)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Graphs(Protocol):
    """Records functions and runs what was recorded; `CudaGraphs` does, and tests have one for a CPU.

    Attributes:
        lanes: Number of lanes, which run beside each other.
    """

    lanes: int

    def record(self, function: Callable[[], T], lane: int) -> tuple[Callable[[], None], T]:
        """Record a function without running it; return a function that replays it, and the tensors that it fills."""

    def lane(self, lane: int) -> AbstractContextManager[None]:
        """Run what follows in a lane."""

    def fork(self) -> None:
        """Let all lanes wait for what was launched before."""

    def join(self) -> None:
        """Let what follows wait for all lanes."""

    def time(self, replay: Callable[[], None]) -> float:
        """Replay once, alone, and return the seconds that it took."""


class CudaGraphs:
    """Records CUDA graphs in several lanes, which run beside each other; in a lane, one runs after another.

    Graphs of a lane share memory: what one leaves behind, apart from tensors that are kept, the next overwrites.

    Args:
        device: The device.
        lanes: Number of lanes.
    """

    def __init__(self, device: torch.device, lanes: int) -> None:
        self.device = device
        self.lanes = lanes
        self._streams = [torch.cuda.Stream(device) for _ in range(lanes)]
        self._pools = [torch.cuda.graph_pool_handle() for _ in range(lanes)]
        # PyTorch refuses a pool whose graphs are all gone, so each pool has one that stays
        self._kept = [self.record(lambda: torch.zeros(1, device=device), lane) for lane in range(lanes)]

    def record(self, function: Callable[[], T], lane: int) -> tuple[Callable[[], None], T]:
        """Record a function without running it; return a function that replays it, and the tensors that it fills.

        Raises:
            RuntimeError: The function does what a graph cannot hold, such as waiting for the device.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what the pools need is often what was just freed
        with torch.cuda.stream(self._streams[lane]):
            # other threads may pin memory meanwhile
            graph.capture_begin(pool=self._pools[lane], capture_error_mode="thread_local")
            try:
                filled = function()
            except BaseException:
                with suppress(RuntimeError):  # the first error says more
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay, filled

    @contextmanager
    def lane(self, lane: int) -> Iterator[None]:
        """Run what follows in a lane."""
        with torch.cuda.stream(self._streams[lane]):
            yield

    def fork(self) -> None:
        """Let all lanes wait for what was launched before."""
        now = torch.cuda.current_stream(self.device)
        for stream in self._streams:
            stream.wait_stream(now)

    def join(self) -> None:
        """Let what follows wait for all lanes."""
        now = torch.cuda.current_stream(self.device)
        for stream in self._streams:
            now.wait_stream(stream)

    def time(self, replay: Callable[[], None]) -> float:
        """Replay once, alone, and return the seconds that it took."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
