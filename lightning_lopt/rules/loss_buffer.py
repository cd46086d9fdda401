r"""How the loss has been going: ten running averages over the horizon, and how each stands to the next slower one.

.. math::
    \delta_j = e^{-1/\tau_j}, \quad \tau_j = 10^{1 + (\log_{10} T - 1)\, j / 9}, \quad
    a_j \leftarrow \delta_j a_j + (1 - \delta_j)\, L, \quad \hat a_j = a_j / (1 - \delta_j^n), \quad
    b_j \leftarrow \min(b_j, \hat a_j)

for the n-th loss L, cut off at twice the largest average before, and the features, j = 0 to 8,

.. math:: f_j = \mathrm{clip}\Big( \frac{\hat a_j - b_j}{\max(10^{-8}, \hat a_{j+1} - b_j)} - 1, -1, 1 \Big),

zeros for the first two losses. References: Metz et al. 2022, https://arxiv.org/abs/2211.09760.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

AVERAGES = 10
FEATURES = AVERAGES - 1
UNSEEN = 999999999999.0


def init_losses(like: Tensor) -> dict[str, Tensor]:
    """Before the first loss: a and b of shape (10,), and n, 0-dim."""
    return {
        "loss_means": like.new_zeros(AVERAGES),
        "loss_minima": like.new_full((AVERAGES,), UNSEEN),
        "loss_count": like.new_zeros(()),
    }


def update_losses(old: Mapping[str, Tensor], loss: Tensor, horizon: Tensor) -> dict[str, Tensor]:
    """The averages with a loss, 0-dim, taken into them; ``horizon`` is T, 0-dim."""
    means, count = old["loss_means"], old["loss_count"] + 1
    loss, rates = loss.to(means.dtype), _inverse_times(means, horizon)
    largest = (means / -torch.expm1(-count * rates)).amax()  # corrected for this loss, which is not yet in it
    loss = torch.where(count == 1, loss, torch.minimum(2 * largest.abs(), loss))
    means = torch.lerp(means, loss, -torch.expm1(-rates))
    minima = torch.minimum(old["loss_minima"], means / -torch.expm1(-count * rates))
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
