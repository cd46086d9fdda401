"""NNAdam: an LSTM adapts the constants of Adam for each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_numbers, check_sizes
from lightning_lopt.rules.base import Role, StepContext, TensorInputs, TensorState, UpdateRule, register_rule
from lightning_lopt.rules.shared.arithmetic import constants, variance
from lightning_lopt.rules.shared.recurrent import LSTM, Layer, lstm_state

GRADIENT_LIMIT = 1000.0
SIGNALS = 19
# Bounds of the logarithms of the four constants, in the order α, 1 - β₁, 1 - β₂ and ε.
LOWER = (math.log(1e-8), -10.0, -10.0, math.log(1e-11))
UPPER = (math.log(1e3), 0.0, 0.0, math.log(1e4))


@register_rule("nn_adam")
class NNAdamRule(UpdateRule):
    r"""Adam with separate constants for each tensor, which an LSTM changes a little at every step.

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        \Delta p = -\alpha \Big( \frac{(1 + \epsilon)\, m}{\epsilon + \sqrt{v + 10^{-10}}} + \lambda p \Big), \quad
        z \leftarrow z + 0.01\, (W h + b)

    with g clipped to ±1000, :math:`z = \log(\alpha, 1 - \beta_1, 1 - \beta_2, \epsilon) / 10`, and h the output of an
    :class:`~lightning_lopt.rules.shared.recurrent.LSTM` with the inputs z, the rank of the tensor, and sizes and signs
    of means and variances of g, m, v and p. Constants change after the step, within bounds: α in [1e-8, 1e3], ε in
    [1e-11, 1e4] and 1 - β in [e^-10, 1]. Before meta-training they do not change.

    Args:
        lr, beta1, beta2, eps: initial α, β₁, β₂ and ε of all tensors; these initial values are learned, too.
        lstm_hidden: size H of the LSTM.
        output_scale: the factor 0.01 in the last equation.
        decay: κ: before each change z decays towards its initial value, :math:`z \leftarrow z - \kappa (z - z_0)`.

    Raises:
        ValueError: if an argument lies outside its range.

    State bytes per parameter (float32): 8, and 8 H + 20 per tensor.
    References: the reference implementation is that of Metz et al. 2020, https://arxiv.org/abs/2009.11243.

    Example:
        >>> from lightning_lopt import StepContext
        >>> rule = NNAdamRule(lr=0.1)
        >>> params, grads = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, -0.5])}
        >>> context = StepContext(step=torch.tensor(0), total_steps=torch.tensor(10))
        >>> updates, state = rule(params, grads, rule.init_state(params, roles={}), context)
        >>> {name: tuple(value.shape) for name, value in state.tensors["w"].items()}
        {'momentum': (2,), 'second_moment': (2,), 'constants': (4,), 'hidden': (32,), 'cell': (32,), 'started': ()}
    """

    def __init__(
        self,
        lr: float = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        lstm_hidden: int = 32,
        output_scale: float = 0.01,
        decay: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(lstm_hidden=lstm_hidden)
        check_numbers(0.0, lr=lr, beta1=beta1, beta2=beta2, eps=eps, output_scale=output_scale, decay=decay)
        if not (1e-8 <= lr <= 1e3 and 1e-11 <= eps <= 1e4 and max(beta1, beta2) <= 1 - math.exp(-10)):
            raise ValueError(
                f"lr must lie in [1e-8, 1e3], eps in [1e-11, 1e4] and betas in [0, 0.99995], got {lr!r}, {eps!r}, "
                f"{beta1!r} and {beta2!r}."
            )
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.lstm_hidden, self.output_scale, self.decay = lstm_hidden, output_scale, decay
        self.lstm, self.controls = LSTM(SIGNALS, lstm_hidden), Layer(lstm_hidden, 4)
        nn.init.zeros_(self.controls.weight)
        self.initial = nn.Parameter(
            torch.tensor([lr, 1 - beta1, 1 - beta2, eps], dtype=torch.float64).log().float() / 10
        )

    @property
    def config(self) -> dict[str, Any]:
        names = ("lr", "beta1", "beta2", "eps", "lstm_hidden", "output_scale", "decay")
        return {name: getattr(self, name) for name in names}

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        averages = {key: torch.zeros_like(param) for key in ("momentum", "second_moment")}
        return averages | {"constants": param.new_zeros(4)} | self.lstm.init_state(param)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        param, grad = inputs.param, inputs.grad.clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
        initial = self.initial.to(grad.dtype)
        z = torch.where(inputs.state["started"] > 0, inputs.state["constants"], initial)
        lr, rate1, rate2, eps = torch.exp(10 * _bounded(z)).unbind(-1)
        momentum = torch.lerp(inputs.state["momentum"], grad, rate1)
        second_moment = torch.lerp(inputs.state["second_moment"], grad.square(), rate2)
        step = (1 + eps) / (eps + torch.sqrt(second_moment + 1e-10)) * momentum
        signals = _signals(param, grad, momentum, second_moment, z).to(self.initial.dtype)
        hidden, cell = self.lstm(signals, *self.lstm.recall(inputs.state))
        change = (self.output_scale * self.controls(hidden)).to(z.dtype)
        state = {
            "momentum": momentum,
            "second_moment": second_moment,
            "constants": _bounded(z - self.decay * (z - initial) + change),
        }
        return -lr * (step + inputs.weight_decay * param), state | lstm_state(hidden, cell, param)


def _bounded(z: Tensor) -> Tensor:
    """``z``, shape (4,), clipped so that the constants lie within their bounds."""
    return torch.clamp(10 * z, constants(LOWER, z), constants(UPPER, z)) / 10


def _signals(param: Tensor, grad: Tensor, momentum: Tensor, second_moment: Tensor, z: Tensor) -> Tensor:
    """The inputs of the LSTM for a tensor, shape (SIGNALS,), in the order of the reference."""
    lr, beta1, beta2, eps = (0.2 * z.clamp(-5.0, 5.0)).unbind(-1)
    is_bias, is_scalar = constants([1.0 if param.ndim == rank else -1.0 for rank in (1, 0)], param)
    means = {x: t.mean() for x, t in (("g", grad), ("m", momentum), ("p", param), ("v", second_moment))}
    signs = {x: mean.sign() for x, mean in means.items()}
    sizes = {x: _squash(mean) for x, mean in means.items()}
    variances = [_squash(variance(t.flatten())) for t in (grad, momentum, param, second_moment)]
    return torch.stack(
        [beta1, beta2, eps, is_bias, is_scalar, lr, sizes["g"], signs["g"], _squash(grad.abs().mean())]
        + [part[x] for x in ("m", "p", "v") for part in (sizes, signs)]
        + variances
    )


def _squash(x: Tensor) -> Tensor:
    return 0.5 * torch.log(1e-8 + x.abs()).clamp(-5.0, 5.0)
