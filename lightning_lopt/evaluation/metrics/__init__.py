"""Is this optimizer any good: pure functions of measurements, and torchmetrics over a suite of problems."""

from lightning_lopt.evaluation.metrics.base import ContestMetric
from lightning_lopt.evaluation.metrics.bootstrap import interval, iqm, mean, median, worst
from lightning_lopt.evaluation.metrics.contest import Contest
from lightning_lopt.evaluation.metrics.levels import CAP, FLOOR, final_loss, log_ratio, lowest, median_loss, relative
from lightning_lopt.evaluation.metrics.losses import LossRatio, NormalisedLoss, WorstRegret, normalised_loss
from lightning_lopt.evaluation.metrics.rates import DivergenceRate, WinRate, diverged, wins
from lightning_lopt.evaluation.metrics.speedup import StepSpeedup, WallClockSpeedup, smoothed, step_speedup, steps_to

__all__ = [
    "CAP",
    "FLOOR",
    "Contest",
    "ContestMetric",
    "DivergenceRate",
    "LossRatio",
    "NormalisedLoss",
    "StepSpeedup",
    "WallClockSpeedup",
    "WinRate",
    "WorstRegret",
    "diverged",
    "final_loss",
    "interval",
    "iqm",
    "log_ratio",
    "lowest",
    "mean",
    "median",
    "median_loss",
    "normalised_loss",
    "relative",
    "smoothed",
    "step_speedup",
    "steps_to",
    "wins",
    "worst",
]
