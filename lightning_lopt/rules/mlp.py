"""The per-entry perceptron of Metz et al. 2019, with momenta at six decays and the time as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_averages, check_numbers, check_sizes
from lightning_lopt.rules.base import Role, StepContext, TensorInputs, TensorState, UpdateRule, register_rule
from lightning_lopt.rules.shared.arithmetic import view
from lightning_lopt.rules.shared.averages import average, rates
from lightning_lopt.rules.shared.entry_network import EntryNetwork
from lightning_lopt.rules.shared.fast_entry_network import apply_network
from lightning_lopt.rules.shared.moment_features import MomentumFeatures
from lightning_lopt.rules.shared.time_features import TIMES, elapsed

NORM_EPS = 1e-5
GRADIENT_LIMIT = 1e15  # not in the reference: the squares of larger gradients overflow in float32


@register_rule("mlp")
class MLPRule(UpdateRule):
    r"""A perceptron applied to every entry, also known as MLPLOpt.

    .. math::
        m_j \leftarrow d_j m_j + (1 - d_j) g, \qquad \Delta p = -\eta\, (o_1 e^{\kappa o_2} + \lambda p)

    with the outputs o of an :class:`~lightning_lopt.rules.shared.entry_network.EntryNetwork` for g, p and the k
    momenta, each normalised over its tensor, and :math:`\tanh(t/\tau - 1)` for eleven times τ. The step does not depend
    on the shape of a tensor.

    Args:
        hidden: width of the network.
        step_mult: step size η, >= 0.
        exp_mult: κ.
        momentum_decays: decays of the k momenta, each in [0, 1).

    Raises:
        ValueError: if an argument lies outside its range.

    State bytes per parameter (float32, k = 6): 24.
    References: Metz et al. 2019, https://arxiv.org/abs/1810.10180.

    Example:
        >>> from lightning_lopt import MetaTrainer, PES
        >>> rule = MLPRule(hidden=16)
        >>> meta_trainer = MetaTrainer(rule, PES(truncation=50), horizons=(100, 1000))  # L.Trainer().fit(...) trains θ
        >>> sum(value.numel() for value in rule.parameters()), rule.trained
        (626, False)
    """

    starts_random = True

    def __init__(
        self,
        hidden: int = 32,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        momentum_decays: Sequence[float] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    ) -> None:
        super().__init__()
        check_sizes(hidden=hidden)
        check_numbers(0.0, step_mult=step_mult)
        check_numbers(exp_mult=exp_mult)
        check_averages("momentum_decays", momentum_decays)
        self.hidden, self.step_mult, self.exp_mult = hidden, step_mult, exp_mult
        self.momentum_decays = list(momentum_decays)
        self.network = EntryNetwork(2 + len(self.momentum_decays), 0, hidden, 2, len(TIMES))

    @property
    def config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("hidden", "step_mult", "exp_mult", "momentum_decays")}

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return {"momentum": param.new_zeros(len(self.momentum_decays), *view(param).shape)}

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        param, grad = view(inputs.param), view(inputs.grad).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
        momentum = average(inputs.state["momentum"], grad, rates(self.momentum_decays, grad))
        weights = self.network.weights(grad.dtype, 2, elapsed(at.step, grad))
        features = MomentumFeatures(grad[None], param[None], momentum)
        direction, magnitude = apply_network(weights, features, (), NORM_EPS)
        step = direction * torch.exp(self.exp_mult * magnitude) + inputs.weight_decay * param
        return -self.step_mult * step, {"momentum": momentum}
