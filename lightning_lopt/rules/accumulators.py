"""Running averages of the gradient and of its square, several decays at once, and their bias correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def column(values: Sequence[float], like: Tensor, ndim: int) -> Tensor:
    """``values`` as a constant of shape (k, 1, ..., 1), to be broadcast against a (k, *shape) tensor of rank ``ndim``.

    In the type of ``like``, on its device, without waiting for the copy.
    """
    constant = torch.tensor(list(values), dtype=like.dtype).to(like.device, non_blocking=True)
    return constant.reshape(-1, *[1] * (ndim - 1))


def average(old: Tensor, new: Tensor, decays: Sequence[float]) -> Tensor:
    r"""One step of k exponential averages, :math:`a_j \leftarrow d_j a_j + (1 - d_j) x`.

    Args:
        old: the averages, shape (k, *shape).
        new: x, shape (*shape).
        decays: the k decays, each in [0, 1).
    """
    return torch.lerp(old, new, column([1 - decay for decay in decays], old, old.ndim))


def bias_correction(decay: float, count: Tensor) -> Tensor | float:
    """1 - d^count, what an average that began at 0 is divided by.

    ``expm1`` keeps the digits that float32 loses where the power is close to 1.
    """
    return -torch.expm1(count * math.log(decay)) if decay > 0 else 1.0


def unbiased(averages: Tensor, decays: Sequence[float], count: Tensor) -> Tensor:
    """Averages of shape (k, *shape) divided by their bias correction after ``count`` steps, a 0-dim tensor."""
    corrected = [average / bias_correction(decay, count) for average, decay in zip(averages, decays, strict=True)]
    return torch.stack(corrected)
