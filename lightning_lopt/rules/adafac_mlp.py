"""AdafacMLP (small_fc_lopt): a small network computes the step of every entry from momenta and second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_choice, check_decays, check_numbers, check_sizes
from lightning_lopt.rules.base import (
    THETA_DTYPE,
    Role,
    StepContext,
    TensorInputs,
    TensorState,
    UpdateRule,
    register_rule,
)
from lightning_lopt.rules.shared.arithmetic import constants, view
from lightning_lopt.rules.shared.entry_network import EntryNetwork
from lightning_lopt.rules.shared.fast_entry_network import apply_network
from lightning_lopt.rules.shared.features import averaged_features, spread
from lightning_lopt.rules.shared.moments import Matrix, Rates, Ties, init_averages, update_averages
from lightning_lopt.rules.shared.time_features import TIMES, elapsed

NORM_EPS = 1e-5
SECOND_MOMENT_EPS = 1e-6
GRADIENT_LIMIT = 1e6  # not in the reference: the fourth power of larger gradients overflows in float32


@register_rule("adafac_mlp")
class AdafacMLPRule(UpdateRule):
    r"""AdafacMLP, also known as small_fc_lopt.

    .. math:: \Delta p = -\eta\, (o_1 e^{\kappa o_2} + \lambda p)

    with the outputs o of an :class:`~lightning_lopt.rules.shared.entry_network.EntryNetwork` whose inputs are momenta,
    second moments and factored second moments (:mod:`~lightning_lopt.rules.shared.features`), and the time in steps. θ
    also has an offset for each decay d, :math:`1 - d = (1 - d_0)\, e^{10 \theta}`; d may become negative for momenta;
    for second moments it is at least 0.

    By default, a tensor of rank > 2 is treated as the matrix (out, everything else). The reference has weights of shape
    (in, out) and kernels of shape (height, width, in, out), and factors the two largest axes.

    Args:
        hidden: width of the network; published weights have 32.
        step_mult: step size η, >= 0.
        exp_mult: κ.
        momentum_decays: decays of the k momenta before meta-training, each in [0, 1).
        second_moment_decay: decay of the second moment before meta-training, in [0, 1).
        factored_decays: decays of the k factored second moments before meta-training, each in [0, 1).
        matrix: ``"flat"``, or ``"stored"`` for tensors whose axes have the order of the reference.

    Raises:
        ValueError: if an argument lies outside its range.

    State bytes per parameter (float32, k = 3): 16, and 12 (rows + columns) per matrix; rank < 2: 28.
    References: Metz et al. 2022, https://arxiv.org/abs/2203.11860.

    Example:
        >>> rule = AdafacMLPRule(hidden=8)
        >>> state = rule.init_tensor(torch.zeros(64, 32), "matrix")
        >>> {name: tuple(value.shape) for name, value in state.items()}
        {'momentum': (3, 64, 32), 'second_moment': (64, 32), 'rows': (3, 1, 32), 'columns': (3, 64, 1)}
        >>> sum(value.numel() for value in rule.parameters())  # numbers in θ
        417
    """

    starts_random = True

    def __init__(
        self,
        hidden: int = 4,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        matrix: Matrix = "flat",
    ) -> None:
        super().__init__()
        check_sizes(hidden=hidden)
        check_numbers(0.0, step_mult=step_mult)
        check_numbers(exp_mult=exp_mult)
        check_decays(momentum_decays, second_moment_decay, factored_decays)
        check_choice("matrix", matrix, ("flat", "stored"))
        self.hidden, self.step_mult, self.exp_mult, self.matrix = hidden, step_mult, exp_mult, matrix
        self.momentum_decays, self.factored_decays = list(momentum_decays), list(factored_decays)
        self.second_moment_decay = second_moment_decay
        count = len(self.momentum_decays)
        self.network = EntryNetwork(4 + 4 * count, 4 * count, hidden, 2, len(TIMES))
        self.momentum_offsets = nn.Parameter(torch.zeros(count, dtype=THETA_DTYPE))
        self.second_moment_offset = nn.Parameter(torch.zeros(1, dtype=THETA_DTYPE))
        self.factored_offsets = nn.Parameter(torch.zeros(count, dtype=THETA_DTYPE))

    @property
    def config(self) -> dict[str, Any]:
        names = (
            "hidden", "step_mult", "exp_mult", "momentum_decays", "second_moment_decay", "factored_decays", "matrix",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return init_averages(self._view(param), len(self.momentum_decays), self._ties)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        param, grad = self._view(inputs.param), self._view(inputs.grad).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
        averages = update_averages(inputs.state, grad, self._rates(grad), self._ties)
        features, outer = averaged_features(
            param, grad, averages, self._ties,
            eps=SECOND_MOMENT_EPS, diagonal_eps=SECOND_MOMENT_EPS, gradient_forms=False,
        )  # fmt: skip
        weights = self.network.weights(grad.dtype, 2, elapsed(at.step, grad))
        direction, magnitude = apply_network(weights, *spread(features, outer), NORM_EPS)
        step = (direction * torch.exp(self.exp_mult * magnitude)).reshape(param.shape)
        size = -self.step_mult * self._step_factor(inputs.param, inputs.role)
        return size * (step + inputs.weight_decay * param), averages

    def _step_factor(self, param: Tensor, role: Role) -> float:
        """Factor on the step of a tensor."""
        return 1.0

    @property
    def _ties(self) -> Ties:
        return "first" if self.matrix == "flat" else "last"

    def _view(self, x: Tensor) -> Tensor:
        return view(x, flat=self.matrix == "flat")

    def _rates(self, like: Tensor) -> Rates:
        """1 - d of all decays, with the learned offsets."""

        def learned_rates(decays: Sequence[float], offsets: Tensor) -> Tensor:
            initial_rates = constants([1 - decay for decay in decays], like)
            return initial_rates * torch.exp(10 * offsets.to(like.dtype))

        return Rates(
            learned_rates(self.momentum_decays, self.momentum_offsets),
            learned_rates([self.second_moment_decay], self.second_moment_offset)[0].clamp(max=1.0),
            learned_rates(self.factored_decays, self.factored_offsets).clamp(max=1.0),
        )
