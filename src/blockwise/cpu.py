"""What a CPU needs to be fast: memory that stays with the process, and arithmetic that it has instructions for."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

# of glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, on Linux with glibc; elsewhere this does nothing.

    By default glibc takes each large block from the kernel and gives it back when it is freed. A training step on a
    CPU then gets its activations as new pages, step after step, and the kernel's work on them takes up to half of
    the step. It is a setting of the whole process, so it is made by the command line, not by importing the package.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


def has_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16; where PyTorch cannot tell, it is assumed."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is None or platform.machine() not in ("x86_64", "AMD64") or supported()
