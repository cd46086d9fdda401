"""Metrics of optimizers: pure functions of measurements, and torchmetrics over a suite of problems."""

from lightning_lopt.evaluation.metrics.base import PairedMetric, PairedRuns
from lightning_lopt.evaluation.metrics.bootstrap import interval, iqm, mean, median, worst
from lightning_lopt.evaluation.metrics.losses import (
    CAP,
    FLOOR,
    DivergenceRate,
    LossRatio,
    NormalisedLoss,
    WinRate,
    WorstRegret,
    diverged,
    final_loss,
    log_ratio,
    lowest,
    median_loss,
    normalised_loss,
    relative,
    wins,
)
from lightning_lopt.evaluation.metrics.speedup import StepSpeedup, WallClockSpeedup, smoothed, step_speedup, steps_to

Contest = PairedRuns  # former name
ContestMetric = PairedMetric  # former name

__all__ = [
    "CAP",
    "FLOOR",
    "Contest",
    "ContestMetric",
    "DivergenceRate",
    "LossRatio",
    "NormalisedLoss",
    "PairedMetric",
    "PairedRuns",
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
