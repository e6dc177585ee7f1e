"""Keeps the memory that a CPU worker frees, for its next batch."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_LARGEST = 32 * 2**20  # bytes: the largest threshold that glibc takes
_KEPT = 2**31 - 1
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed() -> bool:
    """Have glibc keep up to 2 GiB of what this process frees; whether it does.

    Tensors of a batch are freed and allocated again many times a second. By default glibc hands large ones back to the
    kernel each time, which zeroes their pages anew: up to a sixth of a small denoiser's time on a CPU
    (benchmarks/freed_memory.py). What is computed is the same. Tensors above 32 MiB still go back. Nothing is done
    under another C library, or where the user has set one of glibc's own variables. Source: mallopt(3).
    """
    if any(name in os.environ for name in _OWN):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
    return False
