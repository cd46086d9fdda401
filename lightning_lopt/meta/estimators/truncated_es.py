"""Evolution strategies on pieces of inner runs, with an estimate for each piece from its own losses alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.meta.estimators.evolution import TruncatedEvolutionStrategies, pair_noise
from lightning_lopt.meta.runs import InnerRuns, map_runs


class TruncatedES(TruncatedEvolutionStrategies):
    r"""An estimate from the losses of each truncation alone: low variance, but biased towards short-term gains.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \epsilon_p

    Both particles of a pair begin a truncation at the same inner state, and both continue from the state of the ``+``
    particle (of the ``-`` particle if the ``+`` particle failed). The estimate ignores how θ affected the state before
    the truncation, which gives the short-horizon bias. It is unbiased if ``truncation`` is the whole horizon.

    References: Metz et al. 2019, https://arxiv.org/abs/1810.10180; Wu et al. 2018, https://arxiv.org/abs/1803.02021
    (the bias).

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(), TruncatedES(truncation=5, pairs=4)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=20, seed=0)
        >>> (runs,) = estimator.estimate(rule, [runs]).groups
        >>> plus, minus = runs.params["x"].chunk(2)
        >>> torch.equal(plus, minus)  # both particles of a pair begin the next truncation at the same parameters
        True
    """

    name = "truncated_es"

    def _perturb(self, theta: Tensor, runs: InnerRuns) -> tuple[Tensor, Tensor]:
        noise = pair_noise(theta, self.pairs, self.sigma, runs.seed, runs.truncations)
        return noise, noise

    def _carry_on(self, runs: InnerRuns, credited: Tensor, failed: Tensor) -> InnerRuns:
        survivors = torch.arange(self.pairs, device=failed.device) + self.pairs * failed[: self.pairs]
        return map_runs(runs, lambda value: value.index_select(0, survivors.repeat(2)))
