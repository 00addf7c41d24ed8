"""Properties of the machine: malloc settings, peak memory, bfloat16 and TF32."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

# from glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# glibc's defaults of M_MMAP_MAX and M_TRIM_THRESHOLD
GLIBC_DEFAULTS = (65536, 128 * 1024)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory, for the rest of the process; this does nothing except on Linux with glibc.

    By default glibc gets each large block from the kernel and returns it when it is freed. Training on a CPU then
    allocates new pages for its activations in every step, which takes up to half of the step's time.
    """
    _set_malloc(mmap_max=0, trim_threshold=-1)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory inside a `with` block, then restore glibc's defaults and return the memory to the system."""
    keep_freed_memory()
    try:
        yield
    finally:
        _set_malloc(*GLIBC_DEFAULTS)
        if (trim := _libc_function("malloc_trim")) is not None:
            trim(0)


def _set_malloc(mmap_max: int, trim_threshold: int) -> None:
    if (mallopt := _libc_function("mallopt")) is not None:
        mallopt(M_MMAP_MAX, mmap_max)
        mallopt(M_TRIM_THRESHOLD, trim_threshold)


def _libc_function(name: str) -> Any:
    """Return a function of glibc; None if the system or its C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None


def reset_peak_memory() -> None:
    """Measure the peak memory from now on: of a GPU, and on Linux of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: it resets the peak alone


def peak_memory_bytes() -> int:
    """Return the peak memory in bytes since `reset_peak_memory`, of the GPU if one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_reserved()  # CUDA graphs keep memory that counts as free between replays
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def has_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16; True where PyTorch cannot tell."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is None or platform.machine() not in ("x86_64", "AMD64") or supported()


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:  # noqa: FBT001 (the only argument)
    """Multiply float32 numbers in TF32 on a GPU, or in float32, inside a `with` block.

    PyTorch's default is TF32 for convolutions and float32 for matrices. With TF32, logits differ from those of a CPU by
    about 0.001; the name of a precision should mean the same on all devices.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
