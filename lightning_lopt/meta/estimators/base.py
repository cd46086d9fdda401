"""What an estimator of the meta-gradient is: rule and inner runs in, gradient and advanced inner runs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.devices import sent
from lightning_lopt.meta.inner import Advance, InnerRuns, Theta, advance_runs, start_runs
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Task


class Estimate(NamedTuple):
    """What one call of an estimator gives.

    Attributes:
        gradient: estimate of the meta-gradient, by the names of the trainable entries of θ.
        meta_loss: unweighted mean of what :class:`MetaLoss` makes of the losses of this truncation, 0-dim.
        runs: the inner runs after it.
        failures: number of inner runs that met a loss that is not finite, 0-dim; they count as its cap.
        power: mean squared norm of the independent terms that ``gradient`` is the mean of, 0-dim: with the squared
            norm of the mean it tells the standard error of the estimate.
    """

    gradient: Theta
    meta_loss: Tensor
    runs: InnerRuns
    failures: Tensor
    power: Tensor


class Judged(NamedTuple):
    """Losses of one truncation of G inner runs as the meta-loss sees them.

    Attributes:
        values: weighted and differentiable, shape ``(G, T, N)`` for T steps of N particles each; NaN where one takes no
            part.
        mean: unweighted mean, shape ``(G,)``, detached.
        failed: whether a particle met a loss that is not finite, shape ``(G, N)``.
    """

    values: Tensor
    mean: Tensor
    failed: Tensor


class Estimator(ABC):
    """An estimator of the meta-gradient.

    It keeps nothing between two calls: what it draws is derived from the seed of the inner runs, the number of
    truncations they have seen and the number of the pair, so noise is never stored and a resumed run repeats it.

    Attributes:
        name: in cards and logs.
        particles: inner runs in one group.
        terms: independent terms in one estimate (pairs, or runs without pairs).
        meta_loss: what is minimised.
        advance: how one step of all inner runs is computed.
    """

    name: ClassVar[str]
    particles: int
    terms: int
    meta_loss: MetaLoss
    advance: Advance = staticmethod(advance_runs)

    @property
    def config(self) -> dict[str, Any]:
        """JSON values that describe the estimator, for cards and logs."""
        return {"name": self.name, "meta_loss": self.meta_loss.config}

    def start(self, rule: UpdateRule, task: Task, *, horizon: int, seed: int) -> InnerRuns:
        """Inner runs of ``task`` for :meth:`estimate`, all of their randomness from ``seed``."""
        copies = self.particles // self.terms
        return start_runs(rule, task, pairs=self.terms, horizon=horizon, seed=seed, copies=copies)

    @abstractmethod
    def estimate(self, rule: UpdateRule, runs: InnerRuns) -> Estimate:
        """Estimate the meta-gradient at the rule's present θ and advance ``runs``."""

    def estimate_all(self, rule: UpdateRule, many: Sequence[InnerRuns]) -> list[Estimate]:
        """:meth:`estimate` for inner runs that go :func:`~lightning_lopt.meta.inner.together`, as one where it can."""
        return [self.estimate(rule, runs) for runs in many]

    def _judge(self, losses: Sequence[Tensor], many: Sequence[InnerRuns]) -> Judged:
        """What the meta-loss makes of losses of shape ``(splits, T, N)`` of the steps that follow each of ``many``."""
        rows, steps = torch.stack(list(losses)), losses[0].shape[1]
        scales = torch.tensor([[runs.task.loss_scale] for runs in many]).expand(-1, steps)
        weights = torch.stack([self.meta_loss.weights(runs.step, steps, runs.horizon) for runs in many])
        scales, weights = sent(torch.stack([scales, weights]), rows.device).to(rows.dtype).unbind()
        rows = rows / scales[:, None, :, None]
        failed = ~rows.detach().isfinite().all(1).all(1)
        values = self.meta_loss.of_losses(rows).mean(1)
        return Judged(values * weights[..., None], values.detach().nanmean((1, 2)), failed)


def trainable(rule: UpdateRule) -> Theta:
    """The entries of θ that meta-training may change, detached, by name."""
    return {name: value.detach() for name, value in rule.named_parameters() if value.requires_grad}


def flattened(theta: Theta) -> Tensor:
    """All entries of θ in a row, in the order of its names: one tensor costs one kernel where many cost many."""
    return torch.cat([value.flatten() for value in theta.values()])


def by_name(entries: Tensor, theta: Theta) -> Theta:
    """What :func:`flattened` put in a row (last axis) by name again, in the shapes and types of ``theta``."""
    pieces = torch.split(entries, [value.numel() for value in theta.values()], dim=-1)
    return {
        name: piece.reshape((*entries.shape[:-1], *value.shape)).to(value.dtype).contiguous()
        for (name, value), piece in zip(theta.items(), pieces, strict=True)
    }


def squared_norms(rows: Iterable[Tensor]) -> Tensor:
    """Squared norm over all tensors together for each index of their common leading axis."""
    return torch.stack([row.reshape(len(row), -1).square().sum(1) for row in rows]).sum(0)


def check_at_least_one(value: int, name: str) -> int:
    """``value`` if it is 1 or more.

    Raises:
        ValueError: if it is not.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}.")
    return value
