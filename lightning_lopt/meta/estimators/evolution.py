"""What all estimators by antithetic evolution strategies share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.meta.estimators.base import Estimate, Estimator, check_at_least_one, squared_norms, trainable
from lightning_lopt.meta.estimators.shaping import Shaping, check_shaping, shape_differences
from lightning_lopt.meta.inner import InnerRuns, Theta, unroll
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator


class EvolutionStrategies(Estimator):
    r"""Antithetic evolution strategies with common random numbers.

    P pairs of particles run with :math:`\theta \pm \epsilon_p`, :math:`\epsilon_p \sim \mathcal N(0, \sigma^2 I)`, from
    the same initial parameters and on the same mini-batches. With :math:`\Delta_{tp}` the meta-loss of the ``+``
    particle at step t minus that of the ``-`` particle, one estimate is

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \xi_p

    Estimators differ in how long a piece K is, in when :math:`\epsilon` is drawn anew, and in the perturbation
    :math:`\xi` that a difference is credited to.

    Args:
        pairs: number P of antithetic pairs, >= 1.
        sigma: standard deviation σ of one perturbation, in the unit of θ, > 0.
        meta_loss: what is minimised; the mean training loss by default.
        shaping: of the differences, see :func:`~lightning_lopt.meta.estimators.shaping.shape_differences`.

    Raises:
        ValueError: if a number is out of range or ``shaping`` unknown.
    """

    def __init__(
        self, pairs: int = 8, sigma: float = 0.01, meta_loss: MetaLoss | None = None, shaping: Shaping = "none"
    ) -> None:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive number, got {sigma!r}.")
        self.pairs = self.terms = check_at_least_one(pairs, "pairs")
        self.particles = 2 * pairs
        self.sigma = sigma
        self.meta_loss = meta_loss or MetaLoss()
        self.shaping = check_shaping(shaping)

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "pairs": self.pairs, "sigma": self.sigma, "shaping": self.shaping}

    @abstractmethod
    def _steps(self, runs: InnerRuns) -> int:
        """Length K of the next piece; the horizon may cut it short."""

    @abstractmethod
    def _perturb(self, theta: Theta, runs: InnerRuns) -> tuple[Theta, Theta]:
        """Perturbations ε of the next piece and ξ that its differences are credited to, leading axis P."""

    def _carry_on(self, runs: InnerRuns, credited: Theta, failed: Tensor) -> InnerRuns:
        """The inner runs that the next piece begins with."""
        return runs

    def estimate(self, rule: UpdateRule, runs: InnerRuns) -> Estimate:
        theta, steps = trainable(rule), self._steps(runs)
        noise, credited = self._perturb(theta, runs)
        particles = {name: torch.cat([value + noise[name], value - noise[name]]) for name, value in theta.items()}
        draws = generator(runs.seed, "batches", runs.truncations)
        after, losses = unroll(rule, particles, runs, steps, draws, self.meta_loss.splits, self.advance)
        values, mean, failed = self._judge(losses, runs)
        plus, minus = values.chunk(2, dim=1)
        delta = (plus - minus).sum(0) / steps
        delta = shape_differences(torch.where(delta.isfinite(), delta, 0.0), self.shaping)
        gradient = es_gradient(delta, credited, sigma=self.sigma)
        power = (delta.square() * squared_norms(credited.values())).mean() / (4 * self.sigma**4)
        after = self._carry_on(replace(after, truncations=runs.truncations + 1), credited, failed)
        return Estimate(gradient, mean, after, failed.sum(), power)


class TruncatedEvolutionStrategies(EvolutionStrategies):
    """Evolution strategies on pieces of at most ``truncation`` inner steps.

    The pieces of a run average to (an estimate of) the gradient of the mean over its horizon; the last piece is
    shorter, and weighs less, where ``truncation`` does not divide the horizon.

    Args:
        truncation: inner steps K of one piece, >= 1.
        pairs, sigma, meta_loss, shaping: see :class:`EvolutionStrategies`.
    """

    def __init__(
        self,
        truncation: int = 50,
        pairs: int = 8,
        sigma: float = 0.01,
        meta_loss: MetaLoss | None = None,
        shaping: Shaping = "none",
    ) -> None:
        super().__init__(pairs, sigma, meta_loss, shaping)
        self.truncation = check_at_least_one(truncation, "truncation")

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "truncation": self.truncation}

    def _steps(self, runs: InnerRuns) -> int:
        return self.truncation


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


def pair_noise(theta: Theta, pairs: int, sigma: float, seed: int, draw: int) -> Theta:
    """Gaussian perturbations of θ, leading axis P: pair ``p`` of draw ``draw`` is derived from ``seed`` alone.

    They are drawn on the CPU, so they are the same on every device and for every number of pairs.
    """
    sizes = [value.numel() for value in theta.values()]
    first = next(iter(theta.values()))
    rows = [
        torch.randn(sum(sizes), generator=generator(seed, "noise", draw, pair), dtype=first.dtype)
        for pair in range(pairs)
    ]
    pieces = torch.split((sigma * torch.stack(rows)).to(first.device), sizes, dim=1)
    return {
        name: piece.reshape(pairs, *value.shape).to(value.dtype)
        for (name, value), piece in zip(theta.items(), pieces, strict=True)
    }
