"""Random generators derived from a seed and a path of names, without global state."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed that depends on ``seed`` and on every element of ``path``, the same on every machine.

    >>> derive_seed(0, "noise", 3) == derive_seed(0, "noise", 3) != derive_seed(0, "noise", 4)
    True
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator for one purpose, for instance ``generator(seed, outer_step, rank, "noise")``.

    The seed is derived and not drawn, so there is no generator state to save: a resumed run gets the same numbers from
    the same path.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *path))
