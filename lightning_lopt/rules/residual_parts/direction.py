"""The per-parameter correction of :class:`ResidualRule`: a tiny MLP applied to every entry of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE
from lightning_lopt.rules.shared.arithmetic import mean_square, unit_rms

FEATURES = 4  # besides a constant, which carries the bias


class DirectionMLP(nn.Module):
    """Correction of the direction of each entry, from a few features of the entry; zero before any meta-training.

    Features are stacked on the first axis, so that the small layers multiply (hidden, F) by (F, N) matrices and the
    long axis N stays contiguous.

    Args:
        hidden: width of the two hidden layers.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight_0 = nn.Parameter(torch.randn(hidden, FEATURES + 1, dtype=THETA_DTYPE) * (2 / (FEATURES + 1)) ** 0.5)
        self.weight_1 = nn.Parameter(torch.randn(hidden, hidden, dtype=THETA_DTYPE) * (2 / hidden) ** 0.5)
        self.output_weight = nn.Parameter(torch.zeros(1, hidden, dtype=THETA_DTYPE))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The correction, which has the shape of each of the ``FEATURES`` tensors."""
        shape, dtype = features[0].shape, features[0].dtype
        rows = [feature.reshape(-1) for feature in features]
        x = torch.stack([*rows, torch.ones_like(rows[0])]).to(self.weight_0.dtype)
        x = torch.relu_(self.weight_0 @ x)
        x = torch.relu_(self.weight_1 @ x)
        return (self.output_weight @ x).reshape(shape).to(dtype)

    def corrected(self, direction: Tensor, adam: Tensor, gradient: Tensor, param: Tensor) -> Tensor:
        """The direction, of RMS 1, plus the correction; all arguments have the shape of the tensor.

        Args:
            direction: direction without the correction.
            adam: Adam's direction in the coordinates of the tensor.
            gradient: the gradient, scaled as in ``adam``.
            param: the tensor before the step.
        """
        direction = unit_rms(direction)
        correction: Tensor = self((direction, unit_rms(adam), unit_rms(gradient), unit_rms(param)))
        has_gradient = mean_square(direction)  # 1, or 0 for a zero gradient, which must not cause a step
        return direction + has_gradient * correction
