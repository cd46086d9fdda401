"""Persistent evolution strategies."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_lopt.meta.estimators.evolution import TruncatedEvolutionStrategies, pair_noise
from lightning_lopt.meta.inner import InnerRuns, Theta


class PES(TruncatedEvolutionStrategies):
    r"""Persistent evolution strategies: one truncation at a time, unbiased over the whole run.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \xi_p, \qquad
        \xi_p = \sum_{\text{truncations so far}} \epsilon_p

    Each truncation perturbs θ anew, and each difference of losses is credited to all perturbations since the run
    began. The estimates of all truncations of a run add up to an unbiased estimate of the gradient of
    :math:`\tfrac1K \sum_{t \le T} \mathbb E\, L_t`, K being the truncation length. Both particles of a pair keep their
    own inner run from one truncation to the next. The variance grows with the number of truncations in a run.

    References: Vicol et al. 2021, https://arxiv.org/abs/2112.13835.
    """

    name = "pes"

    def _perturb(self, theta: Theta, runs: InnerRuns) -> tuple[Theta, Theta]:
        noise = self._noise(theta, runs, runs.truncations)
        before = runs.noise_sum
        if before is None:
            before = {name: value.new_zeros(self.pairs, *value.shape) for name, value in theta.items()}
            for truncation in range(runs.truncations):
                before = _add(before, self._noise(theta, runs, truncation))
        return noise, _add(before, noise)

    def _noise(self, theta: Theta, runs: InnerRuns, truncation: int) -> Theta:
        return pair_noise(theta, self.pairs, self.sigma, runs.seed, truncation)

    def _carry_on(self, runs: InnerRuns, credited: Theta, failed: Tensor) -> InnerRuns:
        return replace(runs, noise_sum=credited)


def _add(a: Theta, b: Theta) -> Theta:
    return {name: value + b[name] for name, value in a.items()}
