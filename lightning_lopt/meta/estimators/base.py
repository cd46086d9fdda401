"""The interface of estimators of the meta-gradient: from rule and inner runs to gradient and advanced inner runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.devices import sent
from lightning_lopt.meta.engine import Execution
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.meta.runs import InnerRuns, start_runs
from lightning_lopt.meta.unroll import EAGER
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Task


class Estimate(NamedTuple):
    """The result of one call of an estimator, for G groups of inner runs.

    Attributes:
        gradient: estimate of the meta-gradient, the mean over the groups, in the form of
            :func:`~lightning_lopt.meta.theta.theta_row`, shape ``(D,)``.
        meta_losses: for each group, the unweighted mean of the meta-loss over the steps of this truncation, shape
            ``(G,)``.
        groups: the inner runs after this truncation.
        failures: for each group, the number of inner runs with a loss that is not finite, shape ``(G,)``; such a loss
            counts as the cap of :class:`MetaLoss`.
        powers: for each group, the mean squared norm of the independent terms of its gradient, shape ``(G,)``; the
            standard error of the estimate follows from ``powers`` and the squared norm of the mean.

    Example:
        >>> from lightning_lopt import AdamRule, PES
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(), PES(truncation=5, pairs=4)
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> groups = [estimator.start(rule, bowl, horizon=20, seed=seed) for seed in range(3)]
        >>> estimate = estimator.estimate(rule, groups)
        >>> tuple(estimate.gradient.shape), tuple(estimate.meta_losses.shape), estimate.failures.tolist()
        ((1,), (3,), [0, 0, 0])
    """

    gradient: Tensor
    meta_losses: Tensor
    groups: list[InnerRuns]
    failures: Tensor
    powers: Tensor


class MetaLossValues(NamedTuple):
    """Values of the meta-loss for one truncation of G groups of inner runs.

    Attributes:
        values: weighted and differentiable values, shape ``(G, T, N)`` for T steps of N particles each; NaN for steps
            that are left out.
        mean: unweighted mean, shape ``(G,)``, detached.
        failed: whether a particle had a loss that is not finite, shape ``(G, N)``.
    """

    values: Tensor
    mean: Tensor
    failed: Tensor


class Estimator(ABC):
    """An estimator of the meta-gradient.

    An estimator has no state between two calls. Its noise is derived from the seed of the inner runs, the number of
    their truncations so far and the number of the pair. Noise is never stored, and a resumed run draws the same noise.

    Attributes:
        name: name in cards and logs.
        particles: inner runs in one group.
        terms: independent terms in one estimate (pairs, or runs without pairs).
        meta_loss: the meta-loss, which is minimised.

    Example:
        >>> from lightning_lopt import AdamRule, PES
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(0.001), PES(truncation=10, pairs=4)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=50, seed=0)
        >>> while not runs.finished:  # a custom outer loop: sign descent on θ
        ...     estimate = estimator.estimate(rule, [runs])
        ...     _ = rule.log_lr.data.sub_(0.1 * estimate.gradient.sign()[0])
        ...     (runs,) = estimate.groups
        >>> rule.log_lr.exp().item() > 0.001
        True
    """

    name: ClassVar[str]
    particles: int
    terms: int
    meta_loss: MetaLoss

    @property
    def config(self) -> dict[str, Any]:
        """JSON values that describe the estimator, for cards and logs."""
        return {"name": self.name, "meta_loss": self.meta_loss.config}

    def start(self, rule: UpdateRule, task: Task, *, horizon: int, seed: int) -> InnerRuns:
        """New inner runs of ``task`` for :meth:`estimate`; all of their random numbers follow from ``seed``."""
        copies = self.particles // self.terms
        return start_runs(rule, task, pairs=self.terms, horizon=horizon, seed=seed, copies=copies)

    @abstractmethod
    def estimate(self, rule: UpdateRule, groups: Sequence[InnerRuns], execution: Execution = EAGER) -> Estimate:
        """Estimate the meta-gradient at the rule's present θ from the next truncation of all inner runs.

        Args:
            rule: the rule; it is not changed.
            groups: at least one group of inner runs, of any tasks, begun with :meth:`start`.
            execution: how inner steps are computed.
        """

    def _meta_loss_values(self, losses: Sequence[Tensor], groups: Sequence[InnerRuns]) -> MetaLossValues:
        """Values of the meta-loss for losses of shape ``(splits, T, N)`` of the T steps that follow ``groups``."""
        rows, steps = torch.stack(list(losses)), losses[0].shape[1]
        scales = torch.tensor([[runs.task.loss_scale] for runs in groups]).expand(-1, steps)
        weights = torch.stack([self.meta_loss.weights(runs.step, steps, runs.horizon) for runs in groups])
        scales, weights = sent(torch.stack([scales, weights]), rows.device).to(rows.dtype).unbind()
        rows = rows / scales[:, None, :, None]
        failed = ~rows.detach().isfinite().all(1).all(1)
        values = self.meta_loss.of_losses(rows).mean(1)
        return MetaLossValues(values * weights[..., None], values.detach().nanmean((1, 2)), failed)


def squared_norms(rows: Iterable[Tensor]) -> Tensor:
    """Squared norm over all tensors together for each index of their common leading axis."""
    return torch.stack([row.reshape(len(row), -1).square().sum(1) for row in rows]).sum(0)
