"""Celo: a smaller VeLO, which is meta-trained in two phases on a small budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import register_rule
from lightning_lopt.rules.shared.mixture_rule import MixtureMoment, MixtureRule
from lightning_lopt.rules.shared.moments import Matrix
from lightning_lopt.rules.shared.time_features import SHARES


@register_rule("celo")
class CeloRule(MixtureRule):
    r"""Celo: a network computes the step of every entry, and an LSTM sets the step size of every tensor.

    .. math::
        \Delta p = -\eta\, \alpha\, \big( \sqrt{\mathrm{mean}(p^2) + 10^{-9}}\; o_1 e^{\kappa o_2} + \lambda p \big)

    The outputs o are those of an :class:`~lightning_lopt.rules.shared.entry_network.EntryNetwork` whose inputs are
    momenta, second moments and factored second moments of the gradient, clipped to ±1000
    (:mod:`~lightning_lopt.rules.shared.features`). The weights of the network are the mean of K copies with the shares
    softmax(c). An LSTM (:class:`~lightning_lopt.rules.shared.tensor_controller.TensorController`) computes c and
    :math:`\alpha = 0.1 e^a`; its inputs are the progress of the run and averages of the loss
    (:mod:`~lightning_lopt.rules.shared.loss_features`), the same for all tensors.

    Phase 1 of meta-training trains the network, with α = 1. Phase 2 trains the LSTM and leaves the network unchanged:
    ``rule.networks.requires_grad_(False)``.

    Args:
        lstm_hidden: size H of the LSTM.
        copies: number K of networks to mix.
        hidden: width of the networks.
        phase: 1 or 2.
        step_mult: step size η, >= 0.
        exp_mult: κ.
        momentum_decays: decays of the k momenta, each in [0, 1).
        second_moment_decay: decay of the second moment, in [0, 1).
        factored_decays: decays of the k factored second moments, each in [0, 1).
        matrix: ``"flat"`` treats tensors of rank > 2 as matrices (out, everything else); ``"stored"`` is for tensors
            whose axes have the order of the reference, and factors the two largest axes.

    Raises:
        ValueError: if an argument lies outside its range, and at a step without a loss.

    State bytes per parameter (float32, k = 3): 16, and 12 (rows + columns) + 8 H per matrix; rank < 2: 28.
    References: Moudgil et al. 2025, https://arxiv.org/abs/2501.12670.

    Example:
        >>> rule = CeloRule(lstm_hidden=16, phase=2)
        >>> _ = rule.networks.requires_grad_(False)
        >>> sorted({name.split(".")[0] for name, value in rule.named_parameters() if value.requires_grad})
        ['controller']
    """

    def __init__(
        self,
        lstm_hidden: int = 64,
        copies: int = 1,
        hidden: int = 4,
        phase: int = 2,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        matrix: Matrix = "flat",
    ) -> None:
        super().__init__(
            2 * len(SHARES), lstm_hidden, copies, hidden, step_mult, exp_mult, momentum_decays, second_moment_decay,
            factored_decays, matrix,
        )  # fmt: skip
        if phase not in (1, 2):
            raise ValueError(f"phase must be 1 or 2, got {phase!r}.")
        self.phase = phase

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"phase": self.phase}

    def _signals(self, param: Tensor, state: Mapping[str, Tensor], at: MixtureMoment) -> Tensor:
        return torch.cat([at.progress, at.loss_features])

    def _act(self, shares: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        factors = 0.1 * torch.exp(steps) if self.phase == 2 else torch.ones_like(steps)
        return torch.softmax(shares, -1), factors
