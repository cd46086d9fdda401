"""The common part of all estimators by antithetic evolution strategies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_positive, check_sizes
from lightning_lopt.devices import sent
from lightning_lopt.meta.engine import Execution
from lightning_lopt.meta.estimators.base import Estimate, Estimator
from lightning_lopt.meta.estimators.shaping import Shaping, check_shaping, shape_differences
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.meta.runs import InnerRuns
from lightning_lopt.meta.theta import named_theta, theta_row
from lightning_lopt.meta.unroll import EAGER, unroll_groups
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator

_Terms = tuple[Tensor, Tensor, Tensor, Tensor]


class EvolutionStrategies(Estimator):
    r"""Antithetic evolution strategies with common random numbers.

    P pairs of particles run with :math:`\theta \pm \epsilon_p`, :math:`\epsilon_p \sim \mathcal N(0, \sigma^2 I)`, from
    the same initial parameters and on the same mini-batches. With :math:`\Delta_{tp}` the meta-loss of the ``+``
    particle at step t minus that of the ``-`` particle, one estimate is

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \xi_p

    Estimators differ in the length K of a piece, in the times at which :math:`\epsilon` is drawn again, and in the
    perturbation :math:`\xi` to which a difference of losses is attributed.

    Args:
        pairs: number P of antithetic pairs, >= 1.
        sigma: standard deviation σ of one perturbation, in the unit of θ, > 0.
        meta_loss: the meta-loss, which is minimised; the mean training loss by default.
        shaping: transformation of the differences, see
            :func:`~lightning_lopt.meta.estimators.shaping.shape_differences`.

    Raises:
        ValueError: if a number is out of range or ``shaping`` unknown.

    Example:
        >>> from lightning_lopt.meta.estimators.evolution import pair_noise
        >>> class HalfRuns(EvolutionStrategies):  # a subclass defines the length of a piece and its perturbation
        ...     name = "half_runs"
        ...     def _steps(self, runs):
        ...         return runs.horizon // 2
        ...     def _perturb(self, theta, runs):
        ...         noise = pair_noise(theta, self.pairs, self.sigma, runs.seed, runs.truncations)
        ...         return noise, noise
        >>> HalfRuns(pairs=4, sigma=0.1).particles
        8
    """

    def __init__(
        self, pairs: int = 8, sigma: float = 0.01, meta_loss: MetaLoss | None = None, shaping: Shaping = "none"
    ) -> None:
        check_positive(sigma=sigma)
        check_sizes(pairs=pairs)
        self.pairs = self.terms = pairs
        self.particles = 2 * pairs
        self.sigma = sigma
        self.meta_loss = meta_loss or MetaLoss()
        self.shaping = check_shaping(shaping)

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "pairs": self.pairs, "sigma": self.sigma, "shaping": self.shaping}

    @abstractmethod
    def _steps(self, runs: InnerRuns) -> int:
        """Length K of the next piece, which may be shortened by the horizon."""

    @abstractmethod
    def _perturb(self, theta: Tensor, runs: InnerRuns) -> tuple[Tensor, Tensor]:
        """Perturbations ε of the next piece, and ξ to which its differences are attributed, shape ``(P, D)`` each."""

    def _carry_on(self, runs: InnerRuns, credited: Tensor, failed: Tensor) -> InnerRuns:
        """The inner runs at the beginning of the next piece."""
        return runs

    def estimate(self, rule: UpdateRule, groups: Sequence[InnerRuns], execution: Execution = EAGER) -> Estimate:
        theta = theta_row(rule).detach()
        noise, credited = zip(*(self._perturb(theta, runs) for runs in groups), strict=True)
        particles = theta + torch.cat([sign * group_noise for group_noise in noise for sign in (1, -1)])
        draws = [generator(runs.seed, "batches", runs.truncations) for runs in groups]
        steps = max(self._steps(runs) for runs in groups)
        splits = self.meta_loss.splits
        unrolled = unroll_groups(rule, named_theta(particles, rule), groups, steps, draws, splits, execution)
        terms: dict[int, _Terms] = {}
        signatures = [(losses.shape, losses.dtype) for _, losses in unrolled]
        for signature in dict.fromkeys(signatures):  # groups with the same number of steps are evaluated at once
            numbers = [number for number, group_signature in enumerate(signatures) if group_signature == signature]
            losses = [unrolled[number][1] for number in numbers]
            group_terms = self._terms(
                [groups[number] for number in numbers], losses, [credited[number] for number in numbers]
            )
            terms |= zip(numbers, group_terms, strict=True)
        gradients, means, failed, powers = zip(*(terms[number] for number in range(len(groups))), strict=True)
        advanced = [
            self._carry_on(replace(runs, truncations=runs.truncations + 1), group_noise, group_failed)
            for (runs, _), group_noise, group_failed in zip(unrolled, credited, failed, strict=True)
        ]
        return Estimate(
            torch.stack(gradients).mean(0),
            torch.stack(means),
            advanced,
            torch.stack([group_failed.sum() for group_failed in failed]),
            torch.stack(powers),
        )

    def _terms(self, groups: Sequence[InnerRuns], losses: Sequence[Tensor], credited: Sequence[Tensor]) -> list[_Terms]:
        """Gradient, meta-loss, failed particles and power of each of several groups with the same number of steps."""
        values, means, failed = self._meta_loss_values(losses, groups)
        plus, minus = values.chunk(2, dim=2)
        delta = (plus - minus).sum(1) / self._steps(groups[0])
        delta = shape_differences(torch.where(delta.isfinite(), delta, 0.0), self.shaping)
        noise = torch.stack(list(credited))
        gradients = es_gradient(delta, noise, sigma=self.sigma)
        powers = (delta.square() * noise.square().sum(2)).mean(1) / (4 * self.sigma**4)
        return list(zip(gradients, means, failed, powers, strict=True))


class TruncatedEvolutionStrategies(EvolutionStrategies):
    """Evolution strategies on pieces of at most ``truncation`` inner steps.

    The mean of the estimates of all pieces of a run is (an estimate of) the gradient of the mean loss over its horizon;
    the last piece is shorter, and has less weight, if ``truncation`` does not divide the horizon.

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
        check_sizes(truncation=truncation)
        self.truncation = truncation

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "truncation": self.truncation}

    def _steps(self, runs: InnerRuns) -> int:
        return self.truncation


def es_gradient(delta: Tensor, noise: Tensor, *, sigma: float) -> Tensor:
    r""":math:`\frac{1}{2 \sigma^2 P} \sum_p \Delta_p \epsilon_p` for each entry of θ.

    Args:
        delta: loss under +ε minus loss under -ε, shape ``(..., P)``.
        noise: ε, shape ``(..., P, *shape)`` for an entry of θ of that shape, already times sigma.
        sigma: standard deviation of one perturbation.
    """
    weighted = delta.to(noise.dtype)[..., None, :] @ noise.reshape(*delta.shape, -1)
    return weighted.reshape((*delta.shape[:-1], *noise.shape[delta.ndim :])) / (2 * sigma**2 * delta.shape[-1])


def pair_noise(theta: Tensor, pairs: int, sigma: float, seed: int, draw: int) -> Tensor:
    """Gaussian perturbations of θ, shapes ``(D,)`` and ``(P, D)``: pair ``p`` of draw ``draw`` follows from ``seed``.

    Perturbations are drawn on the CPU, so they are the same on every device and for every number of pairs.
    """
    rows = [
        torch.randn(len(theta), generator=generator(seed, "noise", draw, pair), dtype=theta.dtype)
        for pair in range(pairs)
    ]
    return sent(sigma * torch.stack(rows), theta.device)
