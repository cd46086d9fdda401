"""VeLO: an LSTM per tensor mixes copies of a network into the network that computes the steps of the entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import StepContext, register_rule
from lightning_lopt.rules.shared.arithmetic import constants, variance
from lightning_lopt.rules.shared.mixture_rule import MixtureMoment, MixtureRule
from lightning_lopt.rules.shared.moments import Matrix
from lightning_lopt.rules.shared.time_features import SHARES

RANKS = 5
SHARE_SCALE = 100.0
SHORT_HORIZON = 10.0


@register_rule("velo")
class VeLORule(MixtureRule):
    r"""VeLO, also known as HyperV2. It differs from :class:`CeloRule` in phase 2 in three ways:

    - The shares of the K copies are 100 c, and α = a, which may be negative; c and a are outputs of the LSTM.
    - Besides progress and loss, the LSTM has inputs for each tensor, from its averages before this gradient, with
      :math:`\nu = \max(10^{-9}, \mathrm{mean}(p^2))^{-1/2}` and
      :math:`\Lambda(x) = \mathrm{clip}(\log(10^{-8} + |10 x|), -5, 5) / 2`: Λ of the mean of νv, of the variances of
      the νm, and of the mean squares of νv - mean(νm); and the number of axes longer than 1, one-hot.
    - The controls of a tensor depend on all tensors, so an additional tensor changes all steps.

    The published weights were trained on at most 200,000 steps. For more than 150,000 steps, the wrapper of the
    original gives the unchanged rule the mean of gradient and loss over ceil(steps / 150,000) calls.
    ``Trainer(accumulate_grad_batches=...)`` with :class:`~lightning_lopt.LearnedOptimizerAdapter` does the same: the
    adapter computes the mean of the losses and counts the remaining steps. The L2 term of the original, λp in the
    gradient and λ Σp² in the loss, belongs to the loss of the task, not to the rule.

    Args:
        lstm_hidden: size H of the LSTM; 512 in the published weights.
        copies: number K of networks to mix; 256 in the published weights.
        hidden: width of the networks.
        step_mult: step size η, >= 0.
        exp_mult: κ.
        momentum_decays: decays of the k momenta, each in [0, 1).
        second_moment_decay: decay of the second moment, in [0, 1).
        factored_decays: decays of the k factored second moments, each in [0, 1).
        matrix: ``"flat"`` treats tensors of rank > 2 as matrices (out, everything else); ``"stored"`` is for tensors
            whose axes have the order of the reference, factors the two largest axes and counts all axes.
        short_loss_horizon: average losses over 10 steps for any horizon; some weights were trained that way.
        forgets: reset the state of the LSTM at every step; some weights were trained that way.

    Raises:
        ValueError: if an argument lies outside its range, and at a step without a loss.

    State bytes per parameter (float32, k = 3): 16, and 12 (rows + columns) + 8 H per matrix; rank < 2: 28.
    References: Metz et al. 2022, https://arxiv.org/abs/2211.09760.

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> model = nn.Linear(4, 2)
        >>> rule = VeLORule(lstm_hidden=16, copies=4)  # the published weights have 512 and 256
        >>> optimizer = LearnedOptimizer(model, rule, total_steps=100)
        >>> loss = model(torch.ones(3, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step(loss=loss)  # the rule reads the loss
    """

    def __init__(
        self,
        lstm_hidden: int = 512,
        copies: int = 256,
        hidden: int = 4,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        matrix: Matrix = "flat",
        short_loss_horizon: bool = False,
        forgets: bool = False,
    ) -> None:
        super().__init__(
            2 * len(SHARES) + 1 + RANKS + 2 * len(momentum_decays), lstm_hidden, copies, hidden, step_mult, exp_mult,
            momentum_decays, second_moment_decay, factored_decays, matrix,
        )  # fmt: skip
        self.short_loss_horizon, self.forgets = short_loss_horizon, forgets

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"short_loss_horizon": self.short_loss_horizon, "forgets": self.forgets}

    def _signals(self, param: Tensor, state: Mapping[str, Tensor], at: MixtureMoment) -> Tensor:
        losses = at.loss_features
        unit = torch.rsqrt(param.square().mean().clamp(min=1e-9))
        momentum, second_moment = state["momentum"].flatten(1), state["second_moment"]
        means, variances = momentum.mean(1) * unit, variance(momentum) * unit.square()
        mean = second_moment.mean() * unit
        spread = variance(second_moment.flatten()) * unit.square() + (mean - means).square()
        moments = _squash(mean[None]), _squash(variances), _squash(spread)
        axes = sum(size > 1 for size in param.shape)
        rank = constants([float(axes == count) for count in range(RANKS)], losses)
        return torch.cat([x.to(losses.dtype) for x in (at.progress, losses, moments[0], rank, *moments[1:])])

    def _act(self, shares: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        return SHARE_SCALE * shares, steps

    def _loss_horizon(self, context: StepContext) -> Tensor:
        return torch.full_like(context.total_steps, SHORT_HORIZON) if self.short_loss_horizon else context.total_steps


def _squash(x: Tensor) -> Tensor:
    """The function Λ of :class:`VeLORule`."""
    return 0.5 * torch.log(1e-8 + (10 * x).abs()).clamp(-5.0, 5.0)
