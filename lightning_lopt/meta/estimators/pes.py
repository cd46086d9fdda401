"""Persistent evolution strategies."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_lopt.meta.estimators.evolution import TruncatedEvolutionStrategies, pair_noise
from lightning_lopt.meta.runs import InnerRuns


class PES(TruncatedEvolutionStrategies):
    r"""Persistent evolution strategies: one truncation at a time, unbiased over the whole run.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \xi_p, \qquad
        \xi_p = \sum_{\text{truncations so far}} \epsilon_p

    Each truncation draws a new perturbation of θ, and each difference of losses is attributed to the
    sum of all perturbations since the run began. The estimates of all truncations of a run add up to an unbiased
    estimate of the gradient of :math:`\tfrac1K \sum_{t \le T} \mathbb E\, L_t`, where K is the truncation length. Each
    particle of a pair continues its own inner run in the next truncation. The variance grows with the number of
    truncations in a run.

    References: Vicol et al. 2021, https://arxiv.org/abs/2112.13835.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(), PES(truncation=5, pairs=4)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=20, seed=0)
        >>> while not runs.finished:
        ...     gradient, _, (runs,), _, _ = estimator.estimate(rule, [runs])
        >>> runs.truncations, tuple(gradient.shape)  # θ of AdamRule is one number, the logarithm of the learning rate
        (4, (1,))
    """

    name = "pes"

    def _perturb(self, theta: Tensor, runs: InnerRuns) -> tuple[Tensor, Tensor]:
        noise = self._noise(theta, runs, runs.truncations)
        noise_sum = runs.noise_sum
        if noise_sum is None:
            noise_sum = theta.new_zeros(self.pairs, len(theta))
            for truncation in range(runs.truncations):
                noise_sum = noise_sum + self._noise(theta, runs, truncation)
        return noise, noise_sum + noise

    def _noise(self, theta: Tensor, runs: InnerRuns, truncation: int) -> Tensor:
        return pair_noise(theta, self.pairs, self.sigma, runs.seed, truncation)

    def _carry_on(self, runs: InnerRuns, credited: Tensor, failed: Tensor) -> InnerRuns:
        return replace(runs, noise_sum=credited)
