"""Settings of the C library for memory that is freed by tensors on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the operating system.

    An inner step makes hundreds of tensors of around a megabyte. By default their memory is returned at once and is
    paged in again for the next tensor, which costs up to half of the time of a step. The setting holds for the whole
    process; the memory in use stays at its peak, plus at most 512 MiB of freed memory.

    Returns:
        whether the setting was made: the C library must be glibc (most of Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return False
    largest_in_heap = libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # 32 MiB is the largest value that glibc accepts
    return bool(libc.mallopt(M_TRIM_THRESHOLD, 512 << 20) and largest_in_heap)
