"""Memory that training frees and needs again a moment later stays with the process."""

from __future__ import annotations

import ctypes
import sys

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
