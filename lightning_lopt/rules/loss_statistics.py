r"""Running mean and variance of the loss, and losses measured by them.

.. math::
    \mu \leftarrow \beta \mu + (1-\beta) L, \quad s \leftarrow \beta s + (1-\beta) (\mu - L)^2, \quad
    W(x) = \mathrm{clip}\Big( \frac{x - c \mu}{\sqrt{c s + 10^{-8}}}, -5, 5 \Big), \quad c = 1/(1 - \beta^n + 10^{-8})

with the μ that is already new in s, and n the number of losses. References: Metz et al. 2020,
https://arxiv.org/abs/2009.11243.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-8


class LossStatistics(NamedTuple):
    """μ, s and n, all 0-dim."""

    mean: Tensor
    variance: Tensor
    losses: Tensor

    def updated(self, loss: Tensor, decay: float) -> LossStatistics:
        """With a loss, 0-dim, taken into them at β = ``decay``."""
        loss = loss.to(self.mean.dtype)
        mean = torch.lerp(self.mean, loss, 1 - decay)
        return LossStatistics(mean, torch.lerp(self.variance, (mean - loss).square(), 1 - decay), self.losses + 1)

    def corrected(self, decay: float) -> Tensor:
        """c; expm1 keeps it finite in float32 where n is 0, whatever a compiler reorders."""
        return 1 / (EPS - torch.expm1(self.losses * math.log(decay)))

    def whiten(self, x: Tensor, decay: float) -> Tensor:
        """W(x), 0-dim."""
        correction = self.corrected(decay)
        scale = torch.rsqrt(self.variance * correction + EPS)
        return ((x.to(self.mean.dtype) - self.mean * correction) * scale).clamp(-5.0, 5.0)
