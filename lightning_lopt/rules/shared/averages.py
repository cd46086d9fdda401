"""Running averages at several decays at once, and their bias correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.shared.arithmetic import constants


def rates(decays: Sequence[float], like: Tensor) -> Tensor:
    """1 - d for each of k decays, shape (k,), from :func:`constants`."""
    return constants([1 - decay for decay in decays], like)


def average(averages: Tensor, x: Tensor, rates: Tensor) -> Tensor:
    r"""One step of k exponential averages, :math:`a_j \leftarrow a_j + (1 - d_j) (x - a_j)`.

    Args:
        averages: the averages a, shape (k, *shape).
        x: new value, of shape ``shape``.
        rates: 1 - d, shape (k,).
    """
    return torch.lerp(averages, x, rates.reshape(-1, *[1] * x.ndim))


def bias_correction(decay: float, count: Tensor) -> Tensor | float:
    """1 - d^count, the divisor of an average that began at 0.

    ``expm1`` keeps the digits that float32 would lose if the power is close to 1.
    """
    return -torch.expm1(count * math.log(decay)) if decay > 0 else 1.0


def unbiased(averages: Tensor, decays: Sequence[float], count: Tensor) -> Tensor:
    """Averages of shape (k, *shape) divided by their bias correction after ``count`` steps, a 0-dim tensor."""
    corrected = [average / bias_correction(decay, count) for average, decay in zip(averages, decays, strict=True)]
    return torch.stack(corrected)
