"""The results of a benchmark, and numbers derived from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lopt.evaluation.benchmark.device_limits import DeviceLimits
from lightning_lopt.evaluation.benchmark.optimizers import REFERENCE


@dataclass(frozen=True)
class Figures:
    """Figures of one optimizer on one model.

    Attributes:
        name: name of the optimizer.
        seconds: seconds of consecutive steps.
        flops: mean number of operations in the matrix products of a step, by type; see
            :func:`~lightning_lopt.evaluation.benchmark.operations.operations_of`.
        moved: bytes that any step must move: state and parameters are read and written once, gradients are read once.
        state: bytes between steps, per parameter.
        peak: largest number of further bytes during a step, per parameter.
    """

    name: str
    seconds: tuple[float, ...]
    flops: dict[str, float]
    moved: int
    state: float
    peak: float

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def mean(self) -> float:
        """Mean seconds of a step."""
        return statistics.fmean(self.seconds)

    @property
    def worst(self) -> float:
        """Seconds of the slowest step."""
        return max(self.seconds)

    def floor(self, limits: DeviceLimits) -> float:
        """Lower bound of the seconds of a step with these operations and bytes on the device."""
        return max(limits.seconds_of_products(self.flops), limits.seconds_of_bytes(self.moved))


@dataclass(frozen=True)
class ModelResult:
    """Figures of all optimizers on one model.

    Attributes:
        name: name of the model.
        parameters, tensors: number of trained parameters and tensors.
        gradient: seconds of forward and backward passes.
        figures: figures of each optimizer, including the reference.
        left_out: reasons why optimizers were not measured, by name.
    """

    name: str
    parameters: int
    tensors: int
    gradient: tuple[float, ...]
    figures: tuple[Figures, ...]
    left_out: dict[str, str]

    @property
    def gradient_median(self) -> float:
        """Median seconds of a forward and backward pass."""
        return statistics.median(self.gradient)

    @property
    def reference(self) -> Figures:
        """Figures of AdamW with ``foreach=True``."""
        return next(figures for figures in self.figures if figures.name == REFERENCE)

    def ratio(self, figures: Figures) -> float:
        """Median time of a step, divided by the reference's median time."""
        return figures.median / self.reference.median

    def ratio_of_means(self, figures: Figures) -> float:
        """Mean time of a step, divided by the reference's mean time."""
        return figures.mean / self.reference.mean

    def training_ratio(self, figures: Figures) -> float:
        """Mean time of a training step (forward, backward and optimizer), divided by the time with the reference."""
        return (self.gradient_median + figures.mean) / (self.gradient_median + self.reference.mean)

    def share(self, figures: Figures) -> float:
        """The optimizer's share of a whole training step, in (0, 1)."""
        return figures.mean / (self.gradient_median + figures.mean)

    def to_json(self, limits: DeviceLimits) -> dict[str, Any]:
        """JSON values; times are in seconds, and memory is in bytes."""
        return {
            "model": self.name,
            "parameters": self.parameters,
            "tensors": self.tensors,
            "gradient_seconds": _rounded(self.gradient),
            "optimizers": [
                {
                    "optimizer": figures.name,
                    "ratio_of_medians": round(self.ratio(figures), 4),
                    "ratio_of_means": round(self.ratio_of_means(figures), 4),
                    "training_step_ratio": round(self.training_ratio(figures), 4),
                    "share_of_training_step": round(self.share(figures), 4),
                    "median_seconds": figures.median,
                    "mean_seconds": figures.mean,
                    "worst_seconds": figures.worst,
                    "seconds": _rounded(figures.seconds),
                    "flops": sum(figures.flops.values()),
                    "flops_by_type": figures.flops,
                    "floor_of_flops_seconds": limits.seconds_of_products(figures.flops),
                    "bytes": figures.moved,
                    "floor_of_bytes_seconds": limits.seconds_of_bytes(figures.moved),
                    "state_bytes_per_parameter": figures.state,
                    "peak_bytes_per_parameter": figures.peak,
                }
                for figures in self.figures
            ],
            "left_out": self.left_out,
        }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
