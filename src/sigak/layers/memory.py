"""How the C library hands memory back: it decides how fast small networks train on Linux."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # the numbers of glibc's malloc.h
_LARGEST_MMAP = 32 * 2**20  # glibc refuses a higher mmap threshold on 64-bit machines


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next step; False (and nothing done) on other systems.

    Each training step frees and asks for the same activations again. By default glibc returns such
    large pieces to the kernel, which clears them page by page when they are asked for anew:
    thousands of page faults a step. In exchange the process's memory stays at its peak. Call it
    once, before training; it holds for the whole process.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept and mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP))
