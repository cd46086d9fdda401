"""Estimators of the meta-gradient by antithetic evolution strategies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.meta.inner import InnerRuns, Theta, start_runs, unroll
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Split, Task


class Estimate(NamedTuple):
    """What one call of an estimator gives.

    Attributes:
        gradient: estimate of the meta-gradient, by the names of the perturbed entries of θ.
        meta_loss: unweighted mean of what :class:`MetaLoss` makes of the losses of this truncation, 0-dim.
        runs: the inner runs after it.
        failures: number of particles that met a loss that is not finite; they count as its cap.
    """

    gradient: Theta
    meta_loss: Tensor
    runs: InnerRuns
    failures: int


class EvolutionStrategies(ABC):
    r"""Antithetic evolution strategies with common random numbers.

    P pairs of particles run with :math:`\theta \pm \epsilon_p`, :math:`\epsilon_p \sim \mathcal N(0, \sigma^2 I)`, from
    the same initial parameters and on the same mini-batches.

    Args:
        pairs: number P of antithetic pairs, >= 1.
        sigma: standard deviation σ of one perturbation, in the unit of θ, > 0.
        meta_loss: what is minimised; the mean training loss by default.

    Raises:
        ValueError: if a number is out of range.
    """

    name: ClassVar[str]

    def __init__(self, pairs: int = 8, sigma: float = 0.01, meta_loss: MetaLoss | None = None) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs!r}.")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive number, got {sigma!r}.")
        self.pairs = pairs
        self.sigma = sigma
        self.meta_loss = meta_loss or MetaLoss()

    @property
    def config(self) -> dict[str, Any]:
        """JSON values that describe the estimator, for cards and logs."""
        return {"name": self.name, "pairs": self.pairs, "sigma": self.sigma, "meta_loss": self.meta_loss.config}

    def start(self, rule: UpdateRule, task: Task, *, horizon: int, seed: int) -> InnerRuns:
        """Inner runs of ``task`` for :meth:`estimate`, all of their randomness from ``seed``."""
        return start_runs(rule, trainable(rule), task, pairs=self.pairs, horizon=horizon, seed=seed)

    @abstractmethod
    def estimate(self, rule: UpdateRule, runs: InnerRuns, draws: torch.Generator) -> Estimate:
        """Estimate the meta-gradient at the rule's present θ and advance ``runs``; noise and batches from ``draws``."""

    def _antithetic(
        self, rule: UpdateRule, runs: InnerRuns, steps: int, draws: torch.Generator
    ) -> tuple[Theta, Tensor, Tensor, InnerRuns, int]:
        """Run pairs at θ ± ε: (ε, loss of + minus loss of - as (T, P), mean loss, runs, failures)."""
        theta = trainable(rule)
        noise = {
            name: self.sigma * torch.randn(self.pairs, *value.shape, generator=draws, dtype=value.dtype)
            for name, value in theta.items()
        }
        particles = {name: torch.cat([value + noise[name], value - noise[name]]) for name, value in theta.items()}
        first, split = runs.step, self.meta_loss.split
        splits: tuple[Split, ...] = ("train", "valid") if split == "both" else (split,)
        runs, losses = unroll(rule, particles, runs, steps, draws, splits)
        losses = losses / runs.task.loss_scale
        failed = ~losses.isfinite().all(0)
        values = self.meta_loss.of_losses(losses).mean(0)
        mean = values.nanmean()
        values = values * self.meta_loss.weights(first, len(values), runs.horizon)[:, None]
        plus, minus = values.chunk(2, dim=1)
        delta = torch.nan_to_num(plus - minus, nan=0.0)
        return noise, delta, mean, runs, int(failed.any(0).sum())


class FullES(EvolutionStrategies):
    r"""One perturbation for the whole inner run, from its first step to its horizon.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1T \sum_t \Delta_{tp} \Big) \epsilon_p

    Unbiased for :math:`\nabla_\theta\, \mathbb E_\epsilon \tfrac1T \sum_t L_t(\theta + \epsilon)`; its cost and its
    variance grow with the horizon.

    References: Salimans et al. 2017, https://arxiv.org/abs/1703.03864; Metz et al. 2019,
    https://arxiv.org/abs/1810.10180.
    """

    name = "full_es"

    def estimate(self, rule: UpdateRule, runs: InnerRuns, draws: torch.Generator) -> Estimate:
        if runs.step != 0:
            raise ValueError(f"FullES needs runs at their first step, got runs at step {runs.step}; start new ones.")
        noise, delta, mean, runs, failures = self._antithetic(rule, runs, runs.horizon, draws)
        return Estimate(es_gradient(delta.mean(0), noise, sigma=self.sigma), mean, runs, failures)


class PES(EvolutionStrategies):
    r"""Persistent evolution strategies: one truncation at a time, unbiased over the whole run.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \xi_p, \qquad
        \xi_p = \sum_{\text{truncations so far}} \epsilon_p

    Each truncation perturbs θ anew, and each difference of losses is credited to all perturbations since the run
    began. The estimates of all truncations of a run add up to an unbiased estimate of the gradient of
    :math:`\tfrac1K \sum_{t \le T} \mathbb E\, L_t`, K being the truncation length. Both particles of a pair keep their
    own inner run from one truncation to the next.

    Args:
        truncation: inner steps K of one estimate, >= 1; the last of a run is shorter where K does not divide it.
        pairs, sigma, meta_loss: see :class:`EvolutionStrategies`.

    References: Vicol et al. 2021, https://arxiv.org/abs/2112.13835.
    """

    name = "pes"

    def __init__(
        self, truncation: int = 50, pairs: int = 8, sigma: float = 0.01, meta_loss: MetaLoss | None = None
    ) -> None:
        super().__init__(pairs, sigma, meta_loss)
        if truncation < 1:
            raise ValueError(f"truncation must be at least 1, got {truncation!r}.")
        self.truncation = truncation

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "truncation": self.truncation}

    def estimate(self, rule: UpdateRule, runs: InnerRuns, draws: torch.Generator) -> Estimate:
        noise, delta, mean, runs, failures = self._antithetic(rule, runs, self.truncation, draws)
        noise_sum = {name: runs.noise_sum[name] + value for name, value in noise.items()}
        gradient = es_gradient(delta.sum(0) / self.truncation, noise_sum, sigma=self.sigma)
        return Estimate(gradient, mean, replace(runs, noise_sum=noise_sum), failures)


def es_gradient(delta: Tensor, noise: Theta, *, sigma: float) -> Theta:
    r""":math:`\frac{1}{2 \sigma^2 P} \sum_p \Delta_p \epsilon_p` for each entry of θ.

    Args:
        delta: loss under +ε minus loss under -ε, shape ``(P,)``.
        noise: ε by name, leading axis P, already times sigma.
        sigma: standard deviation of one perturbation.
    """
    pairs = len(delta)
    return {
        name: torch.tensordot(delta.to(value.dtype), value, dims=1) / (2 * sigma**2 * pairs)
        for name, value in noise.items()
    }


def trainable(rule: UpdateRule) -> Theta:
    """The entries of θ that meta-training may change, detached, by name."""
    return {name: value.detach() for name, value in rule.named_parameters() if value.requires_grad}
