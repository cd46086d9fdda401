"""Evolution strategies on whole inner runs."""

from __future__ import annotations

from torch import Tensor

from lightning_lopt.meta.estimators.evolution import EvolutionStrategies, pair_noise
from lightning_lopt.meta.runs import InnerRuns


class FullES(EvolutionStrategies):
    r"""One perturbation for the whole inner run, from its first step to its horizon.

    .. math:: g = \frac{1}{2 \sigma^2 P} \sum_p \Big( \tfrac1T \sum_t \Delta_{tp} \Big) \epsilon_p

    The estimate is unbiased for :math:`\nabla_\theta\, \mathbb E_\epsilon \tfrac1T \sum_t L_t(\theta + \epsilon)`. One
    estimate costs a whole run, so θ changes rarely.

    References: Salimans et al. 2017, https://arxiv.org/abs/1703.03864; Metz et al. 2019,
    https://arxiv.org/abs/1810.10180.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, estimator = AdamRule(), FullES(pairs=4, sigma=0.1)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=20, seed=0)
        >>> estimate = estimator.estimate(rule, [runs])
        >>> bool(estimate.gradient < 0), estimate.groups[0].finished  # a larger learning rate lowers the meta-loss
        (True, True)
    """

    name = "full_es"

    def _steps(self, runs: InnerRuns) -> int:
        if runs.step != 0:
            raise ValueError(f"FullES needs runs at their first step, got runs at step {runs.step}; start new ones.")
        return runs.horizon

    def _perturb(self, theta: Tensor, runs: InnerRuns) -> tuple[Tensor, Tensor]:
        noise = pair_noise(theta, self.pairs, self.sigma, runs.seed, 0)
        return noise, noise
