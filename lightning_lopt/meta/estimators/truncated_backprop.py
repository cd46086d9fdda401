"""Backpropagation through pieces of inner runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_sizes
from lightning_lopt.meta.engine import Execution
from lightning_lopt.meta.engine.streams import side_by_side
from lightning_lopt.meta.estimators.base import Estimate, Estimator, squared_norms
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.meta.runs import InnerRuns, map_runs
from lightning_lopt.meta.theta import named_theta, theta_row
from lightning_lopt.meta.unroll import EAGER, unroll
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator


class TruncatedBackprop(Estimator):
    r"""The gradient of each truncation by backpropagation through its inner steps.

    .. math:: g = \frac1R \sum_r \nabla_\theta\, \tfrac1K \sum_{t} L_{tr}

    with R inner runs side by side, all at θ. The state before the truncation counts as a constant, which gives the
    short-horizon bias. The gradient is exact if ``truncation`` is the whole horizon, but then the gradients of a
    chaotic run explode. Unlike evolution strategies, backpropagation does not smooth the losses. Memory grows with
    ``truncation``, not with the horizon. A run whose gradient is not finite is left out.

    Args:
        truncation: inner steps K of one piece, >= 1.
        runs: number R of inner runs, >= 1.
        meta_loss: the meta-loss, which is minimised; the mean training loss by default. Above its cap the gradient is
            0.
        clip: largest norm of the gradient that flows from one inner step to the step before it, over all parameters
            and state of a run, > 0; ``None`` for none. Clipping limits the gradients of a chaotic run, but
            biases the estimate.

    Raises:
        ValueError: if a number is out of range.

    References: Werbos 1990; Wu et al. 2018, https://arxiv.org/abs/1803.02021 (the bias); Metz et al. 2021,
    https://arxiv.org/abs/2111.05803 (chaos).

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(), TruncatedBackprop(truncation=5, runs=1)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=20, seed=0)
        >>> estimate = estimator.estimate(rule, [runs])
        >>> bool(estimate.gradient < 0), estimate.groups[0].step  # a larger learning rate lowers the meta-loss
        (True, 5)
    """

    name = "truncated_backprop"

    def __init__(
        self, truncation: int = 50, runs: int = 8, meta_loss: MetaLoss | None = None, clip: float | None = None
    ) -> None:
        if clip is not None and not (math.isfinite(clip) and clip > 0):
            raise ValueError(f"clip must be a positive number or None, got {clip!r}.")
        check_sizes(truncation=truncation, runs=runs)
        self.truncation = truncation
        self.terms = self.particles = runs
        self.meta_loss = meta_loss or MetaLoss()
        self.clip = clip

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "runs": self.particles, "truncation": self.truncation, "clip": self.clip}

    def estimate(self, rule: UpdateRule, groups: Sequence[InnerRuns], execution: Execution = EAGER) -> Estimate:
        calls = [partial(self._of_group, rule, runs, execution) for runs in groups]
        gradients, means, advanced, failures, powers = zip(*side_by_side(calls, groups[0].device), strict=True)
        return Estimate(
            torch.stack(gradients).mean(0),
            torch.stack(means),
            list(advanced),
            torch.stack(failures),
            torch.stack(powers),
        )

    def _of_group(
        self, rule: UpdateRule, runs: InnerRuns, execution: Execution
    ) -> tuple[Tensor, Tensor, InnerRuns, Tensor, Tensor]:
        """Gradient, meta-loss, runs after the truncation, failures and power of one group."""
        row = theta_row(rule).detach()
        theta = row.expand(self.particles, len(row)).clone().requires_grad_()
        draws = generator(runs.seed, "batches", runs.truncations)
        advanced, step_losses = runs, []
        with torch.enable_grad():
            particles = named_theta(theta, rule)
            for _ in range(min(self.truncation, runs.horizon - runs.step)):
                advanced, losses = unroll(rule, particles, advanced, 1, draws, self.meta_loss.splits, execution)
                if self.clip is not None:
                    advanced = _clip_backward(advanced, self.clip)
                step_losses.append(losses)
            (values,), (mean,), (failed,) = self._meta_loss_values([torch.cat(step_losses, dim=1)], [runs])
            objective = torch.nan_to_num(values).sum() / self.truncation
        run_gradients = torch.zeros_like(theta)
        if objective.requires_grad:  # the first loss of a truncation does not depend on θ
            (run_gradients,) = torch.autograd.grad(objective, theta, materialize_grads=True)
        is_finite = squared_norms([run_gradients]).isfinite()
        run_gradients = torch.where(is_finite[:, None], run_gradients, 0.0)
        advanced = replace(map_runs(advanced, Tensor.detach), truncations=runs.truncations + 1)
        return run_gradients.mean(0), mean, advanced, (failed | ~is_finite).sum(), squared_norms([run_gradients]).mean()


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` of shape ``(R,)`` with axes of length 1 added, up to the number of axes of ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class _ClipBackward(torch.autograd.Function):
    """The identity; backwards, the joint norm of all gradients of a run is clipped at ``limit``."""

    @staticmethod
    def forward(ctx: Any, limit: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.limit = limit
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = torch.clamp(ctx.limit * squared_norms(gradients).rsqrt(), max=1.0)
        return (None, *(gradient * _column(factor, gradient) for gradient in gradients))


def _clip_backward(runs: InnerRuns, limit: float) -> InnerRuns:
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():  # a task may carry integers from step to step
            tensors.append(tensor)
        return tensor

    map_runs(runs, collect)
    clipped = iter(_ClipBackward.apply(limit, *tensors))  # type: ignore[no-untyped-call]
    return map_runs(runs, lambda tensor: next(clipped) if tensor.is_floating_point() else tensor)
