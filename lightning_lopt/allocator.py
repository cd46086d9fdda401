"""Settings of the C library for memory that tensors on the CPU free."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MIB = 2**20
LARGEST_BLOCK = 32 * MIB  # the largest block that glibc can take from its heap; glibc returns larger ones in any case

_largest_limit = 0  # bytes; the largest ``most`` of all calls in this process


def keep_freed_memory(most: int) -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the operating system.

    A step of an optimizer or of meta-training makes hundreds of temporary tensors of around a megabyte. By default
    glibc returns their memory at once, and the system maps and clears memory again for the next tensor. This costs up
    to half of the time of a step. The setting holds for the whole process. The process then holds at most its peak
    memory plus ``most``.

    Args:
        most: the largest number of bytes of freed memory to keep; the largest value of all calls holds.

    Returns:
        whether the setting holds: the C library must be glibc (most Linux systems have it).
    """
    global _largest_limit
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version")):
        return False
    if most <= _largest_limit:
        return True
    if not (libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and libc.mallopt(M_TRIM_THRESHOLD, most)):
        return False
    _largest_limit = most
    return True
