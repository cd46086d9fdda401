"""The learned part of Celo2: a small network computes the direction of the step of every entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_lopt.checks import check_choice, check_decays, check_numbers, check_sizes
from lightning_lopt.rules.base import Role, StepContext, TensorInputs, TensorState, UpdateRule, register_rule
from lightning_lopt.rules.shared.arithmetic import newton_schulz, view
from lightning_lopt.rules.shared.averages import bias_correction, rates, unbiased
from lightning_lopt.rules.shared.entry_network import EntryNetwork, inverse_rms, matrix_norm
from lightning_lopt.rules.shared.fast_entry_network import apply_network
from lightning_lopt.rules.shared.features import FeatureInputs, averaged_features
from lightning_lopt.rules.shared.moments import Rates, Ties, init_averages, update_averages
from lightning_lopt.rules.shared.schedules import SCHEDULES, schedule_factor

GRADIENT_LIMIT = 1000.0
NORM_EPS = 1e-9
SECOND_MOMENT_EPS = 1e-8
NEWTON_SCHULZ_EPS = 1e-8
FACTORED = ("rows", "columns")
Matrix = Literal["flat", "last_two"]


@register_rule("celo2_base")
class Celo2BaseRule(UpdateRule):
    r"""The learned part of Celo2, for every tensor.

    .. math:: u = o_1 e^{\kappa o_2}, \qquad
        \Delta p = -\eta \Big( \rho\, \frac{u}{\sqrt{\mathrm{mean}(u^2) + 10^{-9}}} + \lambda p \Big)

    with the outputs o of an :class:`~lightning_lopt.rules.shared.entry_network.EntryNetwork` whose inputs are momenta,
    second moments and factored second moments of the clipped gradient (:mod:`~lightning_lopt.rules.shared.features`).
    The step of every matrix has RMS ηρ for any output of the network, even if the gradient is zero.

    By default, a tensor of rank > 2 is treated as the matrix (out, everything else). The reference has weights of shape
    (in, out) and kernels of shape (height, width, in, out), and treats the last two axes as a matrix for each index of
    the leading axes. For linear layers, the two choices give the same rule, transposed.

    Args:
        hidden: width of the network.
        step_mult: step size η, > 0.
        rms_mult: ρ, > 0.
        exp_mult: κ; with 0 the second output has no effect and is not computed.
        weight_decay: decoupled weight decay λ, >= 0; ``context.weight_decay`` is added to it.
        orthogonalise: make the step of tensors of rank >= 2 nearly orthogonal by Newton-Schulz, before its RMS is set.
        param_scale_mult: multiply u by the RMS of the tensor before u is normalised; the normalisation cancels this
            factor except in its term 1e-9.
        bias_correction: correct the momenta and second moments in the features for their start at 0.
        momentum_decays: decays of the k momenta, each in [0, 1).
        second_moment_decay: decay of the second moment, in [0, 1).
        factored_decays: decays of the k factored second moments, each in [0, 1).
        matrix: ``"flat"``, or ``"last_two"`` for tensors whose axes have the order of the reference.
        schedule: factor on all steps, see :func:`~lightning_lopt.rules.shared.schedules.schedule_factor`. The reference
            has none in meta-training, and ``"warmup_cosine"`` in its experiments.

    Raises:
        ValueError: if an argument lies outside its range.

    State bytes per parameter (float32, k = 3): 16, and 12 (rows + columns) per matrix; rank < 2: 28.
    References: Moudgil et al. 2026, https://arxiv.org/abs/2602.19142.

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> layer = nn.Linear(8, 4, bias=False)
        >>> before = layer.weight.detach().clone()
        >>> optimizer = LearnedOptimizer(layer, Celo2BaseRule(step_mult=0.01), total_steps=100)
        >>> layer(torch.ones(3, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> round((layer.weight - before).square().mean().sqrt().item(), 4)  # RMS of the step: step_mult · rms_mult
        0.01
    """

    starts_random = True

    def __init__(
        self,
        hidden: int = 8,
        step_mult: float = 1e-3,
        rms_mult: float = 1.0,
        exp_mult: float = 0.0,
        weight_decay: float = 0.0,
        orthogonalise: bool = False,
        param_scale_mult: bool = False,
        bias_correction: bool = False,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.95,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        matrix: Matrix = "flat",
        schedule: str = "constant",
    ) -> None:
        super().__init__()
        check_sizes(hidden=hidden)
        check_numbers(0.0, step_mult=step_mult, rms_mult=rms_mult, weight_decay=weight_decay)
        check_numbers(exp_mult=exp_mult)
        check_decays(momentum_decays, second_moment_decay, factored_decays)
        check_choice("matrix", matrix, ("flat", "last_two"))
        check_choice("schedule", schedule, SCHEDULES)
        self.schedule, self.reads_horizon = schedule, schedule != "constant"
        self.hidden, self.step_mult, self.rms_mult, self.exp_mult = hidden, step_mult, rms_mult, exp_mult
        self.weight_decay, self.orthogonalise, self.param_scale_mult = weight_decay, orthogonalise, param_scale_mult
        self.bias_correction, self.matrix = bias_correction, matrix
        self.momentum_decays, self.factored_decays = list(momentum_decays), list(factored_decays)
        self.second_moment_decay = second_moment_decay
        self.network = EntryNetwork(6 + 4 * len(momentum_decays), 4 * len(factored_decays), hidden)

    @property
    def config(self) -> dict[str, Any]:
        names = (
            "hidden", "step_mult", "rms_mult", "exp_mult", "weight_decay", "orthogonalise", "param_scale_mult",
            "bias_correction", "momentum_decays", "second_moment_decay", "factored_decays", "matrix", "schedule",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return init_averages(self._view(param), len(self.momentum_decays), self._ties)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        param, grad = self._view(inputs.param), self._view(inputs.grad).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
        averages = update_averages(inputs.state, grad, self._rates(grad), self._ties)
        weights = self.network.weights(grad.dtype, 2 if self.exp_mult else 1)
        outputs = apply_network(weights, *self._features(param, grad, averages, at.step + 1), NORM_EPS)
        update = self._step(param, outputs)
        if self.weight_decay or isinstance(inputs.weight_decay, Tensor) or inputs.weight_decay:
            update = update - self.step_mult * (self.weight_decay + inputs.weight_decay) * param
        return self._scheduled(update, at), averages

    def _scheduled(self, update: Tensor, at: StepContext) -> Tensor:
        return update if self.schedule == "constant" else update * schedule_factor(self.schedule, at)

    @property
    def _ties(self) -> Ties:
        return "first" if self.matrix == "flat" else "last"

    def _view(self, x: Tensor) -> Tensor:
        return view(x, flat=self.matrix == "flat")

    def _rates(self, like: Tensor) -> Rates:
        """1 - d of all decays, in the type of a gradient."""
        return Rates(rates(self.momentum_decays, like), 1 - self.second_moment_decay, rates(self.factored_decays, like))

    def _features(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], count: Tensor
    ) -> tuple[FeatureInputs, list[Tensor]]:
        """The inputs of the inner features, and the outer features, after ``count`` steps."""
        corrected = None
        if self.bias_correction:
            count = count.to(param.dtype)
            corrected = {key: unbiased(x, self.factored_decays, count) for key, x in state.items() if key in FACTORED}
            corrected["momentum"] = unbiased(state["momentum"], self.momentum_decays, count)
            corrected["second_moment"] = state["second_moment"] / bias_correction(self.second_moment_decay, count)
        return averaged_features(
            param, grad, state, self._ties, eps=SECOND_MOMENT_EPS, diagonal_eps=None, corrected=corrected
        )

    def _step(self, param: Tensor, outputs: Tensor) -> Tensor:
        """The update without weight decay, of the shape of ``param``, from the outputs of the network."""
        direction = outputs[0] * torch.exp(self.exp_mult * outputs[1]) if self.exp_mult else outputs[0]
        if self.param_scale_mult:
            direction = direction * torch.sqrt(param.square().mean() + 1e-9)
        if self.orthogonalise and param.ndim >= 2:
            norm = torch.linalg.matrix_norm(direction, keepdim=True)
            direction = newton_schulz(direction / (norm + NEWTON_SCHULZ_EPS))
        scale = inverse_rms(matrix_norm(direction, param.ndim), param.shape, NORM_EPS)
        return direction * (-self.step_mult * self.rms_mult * scale)
