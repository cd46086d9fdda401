"""Statistics over problems and seeds, with intervals from a stratified bootstrap.

Axes: P problems (the strata), S seeds, R resamples. Point statistics and intervals follow Agarwal et al., 2021,
"Deep reinforcement learning at the edge of the statistical precipice", https://arxiv.org/abs/2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lopt.seeding import generator

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 4_000_000  # entries of one block of resamples

Statistic = Callable[[Tensor], Tensor]
"""Scores of shape ``(..., P, S)`` to ``(...)``."""


def iqm(scores: Tensor) -> Tensor:
    """Interquartile mean over the last two axes: a quarter of all P·S scores, rounded down, is dropped at each end.

    >>> iqm(torch.tensor([[0.0, 1.0, 2.0, 3.0, 100.0]]))
    tensor(2.)
    """
    values = scores.flatten(-2).sort(-1).values
    cut = values.shape[-1] // 4
    return values[..., cut : values.shape[-1] - cut].mean(-1)


def median(scores: Tensor) -> Tensor:
    """Median over the last two axes; of an even number the mean of the middle two."""
    return scores.flatten(-2).quantile(0.5, -1)


def mean(scores: Tensor) -> Tensor:
    """Mean over the last two axes."""
    return scores.mean((-2, -1))


def worst(scores: Tensor) -> Tensor:
    """The largest, over problems, of the median over seeds; 1 where that is below 1."""
    return scores.quantile(0.5, -1).amax(-1).clamp(min=1.0)


CENTRE: dict[str, Statistic] = {"iqm": iqm, "median": median}
MEAN: dict[str, Statistic] = {"mean": mean}
WORST: dict[str, Statistic] = {"worst": worst}


def interval(
    scores: Tensor, statistic: Statistic, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of ``statistic`` when the S seeds of each problem are drawn anew with replacement.

    Problems are not resampled: the interval shows how much the statistic would change with other seeds on the same
    problems, not with other problems. With one seed its width is 0. The draws depend on the order of the problems, so
    callers sort them.

    Args:
        scores: one score for each run, shape ``(P, S)``.
        statistic: what to resample.
        level: share of resamples inside, in (0, 1).
        resamples: R, >= 1.
        seed: seed of the draws.

    Returns:
        lower and upper bound.
    """
    problems, seeds = scores.shape
    draws = generator(seed, "bootstrap")
    values = []
    for begin in range(0, resamples, block := max(1, _AT_ONCE // scores.numel())):
        shape = (min(block, resamples - begin), problems, seeds)
        chosen = torch.randint(seeds, shape, generator=draws)
        values.append(statistic(scores.cpu().expand(shape).gather(-1, chosen)))
    bounds = torch.cat(values).quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=scores.dtype))
    return float(bounds[0]), float(bounds[1])
