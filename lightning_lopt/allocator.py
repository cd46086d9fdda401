"""Settings of the C library for memory that is freed by tensors on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MIB = 2**20
LARGEST_BLOCK = 32 * MIB  # the largest block that glibc can take from its heap; larger ones are always returned

_most_kept = 0  # bytes, over all calls in this process


def keep_freed_memory(most: int) -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the operating system.

    A step of an optimizer or of meta-training makes hundreds of temporary tensors of around a megabyte. By default
    their memory is returned at once, and is mapped and cleared again for the next tensor, which costs up to half of the
    time of a step. The setting holds for the whole process; the memory in use stays at its peak, plus the freed memory.

    Args:
        most: bytes of freed memory that are kept at most; the largest value of all calls holds.

    Returns:
        whether the setting holds: the C library must be glibc (most of Linux).
    """
    global _most_kept
    if most <= _most_kept:
        return True
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return False
    if not (libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and libc.mallopt(M_TRIM_THRESHOLD, most)):
        return False
    _most_kept = most
    return True
