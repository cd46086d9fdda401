"""Celo2: the learned rule for matrices, Adam for vectors and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_positive
from lightning_lopt.rules.base import Role, StepContext, TensorInputs, TensorState, register_rule
from lightning_lopt.rules.celo2_base import Celo2BaseRule, Matrix
from lightning_lopt.rules.contract.roles import check_role
from lightning_lopt.rules.shared.averages import bias_correction as correction

ADAM_EPS = 1e-8


@register_rule("celo2")
class Celo2Rule(Celo2BaseRule):
    r"""Celo2: :class:`Celo2BaseRule` with orthogonalised steps, and Adam for vectors and embeddings.

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        \Delta p = -\alpha \eta \Big( \frac{m}{\sqrt{v + 10^{-8}}} + \lambda p \Big)

    is the step of tensors with a role in ``adam_roles``, without clipping of g, and with ε inside the root. The
    reference selects these tensors, biases and embeddings, by name.

    Args:
        adam_roles: roles of the tensors that Adam updates.
        adam_mult: α, the step size of Adam in units of η, > 0.
        adam_betas: β₁ and β₂, each in [0, 1).
        adam_bias_correction: divide m and v by :math:`1 - \beta^t`; the reference does not by default.
        hidden, step_mult, rms_mult, exp_mult, weight_decay, orthogonalise, param_scale_mult, bias_correction,
            momentum_decays, second_moment_decay, factored_decays, matrix, schedule: as in :class:`Celo2BaseRule`.

    Raises:
        ValueError: if an argument lies outside its range, or a role is unknown.

    State bytes per parameter (float32): 8 for tensors that Adam updates, else as in :class:`Celo2BaseRule`.
    References: Moudgil et al. 2026, https://arxiv.org/abs/2602.19142.

    Example:
        >>> rule = Celo2Rule(adam_roles=("vector", "embedding", "head"))
        >>> sorted(rule.init_tensor(torch.zeros(10, 64), "head"))  # Adam updates the head
        ['momentum', 'second_moment']
        >>> sorted(rule.init_tensor(torch.zeros(64, 64), "matrix"))
        ['columns', 'momentum', 'rows', 'second_moment']
    """

    def __init__(
        self,
        adam_roles: Sequence[str] = ("vector", "embedding"),
        adam_mult: float = 20.0,
        adam_betas: Sequence[float] = (0.9, 0.999),
        adam_bias_correction: bool = False,
        hidden: int = 8,
        step_mult: float = 1e-3,
        rms_mult: float = 1.0,
        exp_mult: float = 0.0,
        weight_decay: float = 0.0,
        orthogonalise: bool = True,
        param_scale_mult: bool = False,
        bias_correction: bool = False,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.95,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        matrix: Matrix = "flat",
        schedule: str = "constant",
    ) -> None:
        super().__init__(
            hidden, step_mult, rms_mult, exp_mult, weight_decay, orthogonalise, param_scale_mult, bias_correction,
            momentum_decays, second_moment_decay, factored_decays, matrix, schedule,
        )  # fmt: skip
        check_positive(adam_mult=adam_mult)
        if len(adam_betas) != 2 or not all(0 <= beta < 1 for beta in adam_betas):
            raise ValueError(f"adam_betas must be two numbers in [0, 1), got {list(adam_betas)}.")
        self.adam_roles = [check_role(role, "adam_roles") for role in adam_roles]
        self.adam_mult, self.adam_betas, self.adam_bias_correction = adam_mult, list(adam_betas), adam_bias_correction

    @property
    def config(self) -> dict[str, Any]:
        names = ("adam_roles", "adam_mult", "adam_betas", "adam_bias_correction")
        return {name: getattr(self, name) for name in names} | super().config

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        if role in self.adam_roles:
            return {key: torch.zeros_like(param) for key in ("momentum", "second_moment")}
        return super().init_tensor(param, role)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        if inputs.role not in self.adam_roles:
            return super().step(inputs, controls, at)
        beta1, beta2 = self.adam_betas
        momentum = torch.lerp(inputs.state["momentum"], inputs.grad, 1 - beta1)
        second_moment = torch.lerp(inputs.state["second_moment"], inputs.grad.square(), 1 - beta2)
        state = {"momentum": momentum, "second_moment": second_moment}
        if self.adam_bias_correction:
            count = (at.step + 1).to(inputs.param.dtype)
            momentum = momentum / correction(beta1, count)
            second_moment = second_moment / correction(beta2, count)
        decayed = (self.weight_decay + inputs.weight_decay) * inputs.param
        step = momentum * torch.rsqrt(second_moment + ADAM_EPS) + decayed
        return self._scheduled(-self.adam_mult * self.step_mult * step, at), state
