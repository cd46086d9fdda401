"""The per-tensor recurrent controller of :class:`ResidualRule`: step size, weight decay and momentum mix."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE
from lightning_lopt.rules.residual_parts.role_constants import Constants


class Controls(NamedTuple):
    """Outputs of the controller for each of n tensors, shape (n,) each; 1, 1 and 0 before any meta-training."""

    step_factor: Tensor
    decay_factor: Tensor
    mix_shift: Tensor

    def applied_to(self, constants: Constants) -> Constants:
        """The constants of one tensor after these controls, 0-dim each, have changed them."""
        mixed = constants.with_momentum(constants.momentum_mix + self.mix_shift, constants.momentum_weight)
        step_size, weight_decay = mixed.step_size * self.step_factor, mixed.weight_decay * self.decay_factor
        return mixed._replace(step_size=step_size, weight_decay=weight_decay)


class Controller(nn.Module):
    r"""A GRU over the inner steps, with one hidden state per tensor and the same weights for all tensors.

    .. math::
        z, r = \sigma(W_{zr} [x, h] + b_{zr}), \quad n = \tanh(W_n [x, r h] + b_n), \quad h' = (1 - z)\, n + z\, h

    A linear layer follows, which starts at zero, so the controls start at exactly 1, 1 and 0. All outputs are bounded:
    the factor on the step size lies in ``[1/step_range, step_range]``, the factor on the weight decay in
    ``[1/e^2, e^2]``, and the shift of the momentum mix in ``[-0.2, 0.2]``.

    Args:
        inputs: number F of input signals.
        hidden: size H of the recurrent state.
        step_range: largest factor by which the step size may be changed, > 1.

    References: Cho et al. 2014, https://arxiv.org/abs/1406.1078.
    """

    def __init__(self, inputs: int, hidden: int, step_range: float) -> None:
        super().__init__()
        self.log_step_range = math.log(step_range)
        scale = (inputs + hidden) ** -0.5
        self.gate_weight = nn.Parameter(scale * torch.randn(2 * hidden, inputs + hidden, dtype=THETA_DTYPE))
        self.gate_bias = nn.Parameter(torch.zeros(2 * hidden, dtype=THETA_DTYPE))
        self.candidate_weight = nn.Parameter(scale * torch.randn(hidden, inputs + hidden, dtype=THETA_DTYPE))
        self.candidate_bias = nn.Parameter(torch.zeros(hidden, dtype=THETA_DTYPE))
        self.output_weight = nn.Parameter(torch.zeros(3, hidden, dtype=THETA_DTYPE))
        self.output_bias = nn.Parameter(torch.zeros(3, dtype=THETA_DTYPE))

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Controls, Tensor]:
        """Controls and new hidden state from ``signals`` of shape (n, F) and ``hidden`` of shape (n, H)."""
        gates = torch.sigmoid(torch.cat([signals, hidden], -1) @ self.gate_weight.mT + self.gate_bias)
        update, reset = gates.chunk(2, -1)
        candidate = torch.tanh(
            torch.cat([signals, reset * hidden], -1) @ self.candidate_weight.mT + self.candidate_bias
        )
        hidden = (1 - update) * candidate + update * hidden
        step, decay, mix = torch.tanh(hidden @ self.output_weight.mT + self.output_bias).unbind(-1)
        return Controls(torch.exp(self.log_step_range * step), torch.exp(2 * decay), 0.2 * mix), hidden
