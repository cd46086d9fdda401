r"""The history of the loss as inputs of a rule, in two forms.

**Horizon averages**, of VeLO and Celo: there are ten running averages over the horizon, and a feature compares an
average with the next slower average.

.. math::
    \delta_j = e^{-1/\tau_j}, \quad \tau_j = 10^{1 + (\log_{10} T - 1)\, j / 9}, \quad
    a_j \leftarrow \delta_j a_j + (1 - \delta_j)\, L, \quad \hat a_j = a_j / (1 - \delta_j^n), \quad
    b_j \leftarrow \min(b_j, \hat a_j)

for the n-th loss L, clipped at twice the largest average before it, and the features, j = 0 to 8,

.. math:: f_j = \mathrm{clip}\Big( \frac{\hat a_j - b_j}{\max(10^{-8}, \hat a_{j+1} - b_j)} - 1, -1, 1 \Big),

which are zero for the first two losses. References: Metz et al. 2022, https://arxiv.org/abs/2211.09760.

**Whitened losses**, of RNN-MLP (:class:`LossStatistics`): losses are normalised by their running mean and variance.

.. math::
    \mu \leftarrow \beta \mu + (1-\beta) L, \quad s \leftarrow \beta s + (1-\beta) (\mu - L)^2, \quad
    W(x) = \mathrm{clip}\Big( \frac{x - c \mu}{\sqrt{c s + 10^{-8}}}, -5, 5 \Big), \quad c = 1/(1 - \beta^n + 10^{-8})

where s uses the new μ, and n is the number of losses. References: Metz et al. 2020,
https://arxiv.org/abs/2009.11243.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

AVERAGES = 10
FEATURES = AVERAGES - 1
UNSEEN = 999999999999.0
EPS = 1e-8


def init_losses(like: Tensor) -> dict[str, Tensor]:
    """State before the first loss: a and b of shape (10,), and n, 0-dim."""
    return {
        "loss_means": like.new_zeros(AVERAGES),
        "loss_minima": like.new_full((AVERAGES,), UNSEEN),
        "loss_count": like.new_zeros(()),
    }


def update_losses(state: Mapping[str, Tensor], loss: Tensor, horizon: Tensor) -> dict[str, Tensor]:
    """The state after one more loss, 0-dim; ``horizon`` is T, 0-dim."""
    means, count = state["loss_means"], state["loss_count"] + 1
    loss, rates = loss.to(means.dtype), _inverse_times(means, horizon)
    largest = (means / -torch.expm1(-count * rates)).amax()  # before this loss
    loss = torch.where(count == 1, loss, torch.minimum(2 * largest.abs(), loss))
    means = torch.lerp(means, loss, -torch.expm1(-rates))
    minima = torch.minimum(state["loss_minima"], means / -torch.expm1(-count * rates))
    return {"loss_means": means, "loss_minima": minima, "loss_count": count}


def loss_features(losses: Mapping[str, Tensor], horizon: Tensor) -> Tensor:
    """The features, shape (9,), after at least one loss."""
    means, count = losses["loss_means"], losses["loss_count"]
    corrected = means / -torch.expm1(-count * _inverse_times(means, horizon))
    lowest = losses["loss_minima"][:-1]
    relative = (corrected[:-1] - lowest) / (corrected[1:] - lowest).clamp(min=1e-8)
    return torch.where(count > 2, (relative - 1).clamp(-1.0, 1.0), 0.0)


def _inverse_times(means: Tensor, horizon: Tensor) -> Tensor:
    """1/τ, shape (10,)."""
    share = torch.arange(AVERAGES, dtype=means.dtype, device=means.device) / (AVERAGES - 1)
    return torch.pow(10.0, -(1 + (torch.log10(horizon.to(means.dtype)) - 1) * share))


class LossStatistics(NamedTuple):
    """The statistics μ, s and n of losses, 0-dim each."""

    mean: Tensor
    variance: Tensor
    losses: Tensor

    def updated(self, loss: Tensor, decay: float) -> LossStatistics:
        """The statistics after one more loss, 0-dim, with β = ``decay``."""
        loss = loss.to(self.mean.dtype)
        mean = torch.lerp(self.mean, loss, 1 - decay)
        return LossStatistics(mean, torch.lerp(self.variance, (mean - loss).square(), 1 - decay), self.losses + 1)

    def corrected(self, decay: float) -> Tensor:
        """The bias correction c. With ``expm1``, c is finite in float32 for n = 0, in any order of operations that a
        compiler chooses."""
        return 1 / (EPS - torch.expm1(self.losses * math.log(decay)))

    def whiten(self, x: Tensor, decay: float) -> Tensor:
        """The whitened loss W(x), 0-dim."""
        correction = self.corrected(decay)
        scale = torch.rsqrt(self.variance * correction + EPS)
        return ((x.to(self.mean.dtype) - self.mean * correction) * scale).clamp(-5.0, 5.0)
