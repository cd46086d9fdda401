"""Evolution strategies with one perturbation for a whole inner run, and an estimate after each piece of the run."""

from __future__ import annotations

from torch import Tensor

from lightning_lopt.meta.estimators.evolution import TruncatedEvolutionStrategies, pair_noise
from lightning_lopt.meta.runs import InnerRuns


class NRES(TruncatedEvolutionStrategies):
    r"""Noise-reuse evolution strategies: one perturbation from the first step of a run to its last.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1K \sum_{t} \Delta_{tp} \Big) \epsilon_p, \qquad
        \epsilon_p \text{ drawn once for each run}

    The estimates of a run average to that of :class:`FullES`, and are unbiased for the same smoothed loss, but θ
    changes after every truncation. The variance does not grow with the number of truncations in a run, unlike
    the variance of :class:`PES`. Runs should be out of phase, see ``staggered`` of
    :class:`~lightning_lopt.meta.Horizons`.

    References: Li et al. 2023, https://arxiv.org/abs/2304.12180.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(), NRES(truncation=5, pairs=4)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=20, seed=0)
        >>> estimate = estimator.estimate(rule, [runs])
        >>> bool(estimate.gradient < 0), estimate.groups[0].step  # a larger learning rate lowers the meta-loss
        (True, 5)
    """

    name = "nres"

    def _perturb(self, theta: Tensor, runs: InnerRuns) -> tuple[Tensor, Tensor]:
        noise = pair_noise(theta, self.pairs, self.sigma, runs.seed, 0)
        return noise, noise


class ESSingle(NRES):
    """ES-Single: the estimate of :class:`NRES`, published independently under this name.

    References: Vicol 2023, "Low-variance gradient estimation in unrolled computation graphs with ES-Single", ICML.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, bowl = AdamRule(), Quadratic(torch.tensor([1.0, 4.0]))
        >>> estimators = [ESSingle(truncation=5, pairs=4), NRES(truncation=5, pairs=4)]
        >>> runs = [estimator.start(rule, bowl, horizon=20, seed=0) for estimator in estimators]
        >>> first, second = (estimator.estimate(rule, [run]) for estimator, run in zip(estimators, runs))
        >>> torch.equal(first.gradient, second.gradient)
        True
    """

    name = "es_single"
