"""What a benchmark has found, and what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lopt.evaluation.benchmark.device_limits import DeviceLimits
from lightning_lopt.evaluation.benchmark.optimizers import REFERENCE


@dataclass(frozen=True)
class Figures:
    """Of one optimizer on one model.

    Attributes:
        name: of the optimizer.
        seconds: of consecutive steps.
        flops: operations in the matrix products of a step, mean, by type; see
            :func:`~lightning_lopt.evaluation.benchmark.operations.operations_of`.
        moved: bytes that any step has to move: state and parameters read and written once, gradients read once.
        state: bytes kept between steps, for each parameter.
        peak: most bytes besides at one time of a step, for each parameter.
    """

    name: str
    seconds: tuple[float, ...]
    flops: dict[str, float]
    moved: int
    state: float
    peak: float

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def mean(self) -> float:
        """Seconds of a step."""
        return statistics.fmean(self.seconds)

    @property
    def worst(self) -> float:
        """Seconds of the slowest step."""
        return max(self.seconds)

    def floor(self, limits: DeviceLimits) -> float:
        """Seconds below which no step with these operations and bytes can come on the device."""
        return max(limits.seconds_of_products(self.flops), limits.seconds_of_bytes(self.moved))


@dataclass(frozen=True)
class ModelResult:
    """Of all optimizers on one model.

    Attributes:
        name: of the model.
        parameters, tensors: how many are trained.
        gradient: seconds of forward and backward passes.
        figures: of each optimizer, the reference among them.
        left_out: reasons by the names of optimizers that were not measured.
    """

    name: str
    parameters: int
    tensors: int
    gradient: tuple[float, ...]
    figures: tuple[Figures, ...]
    left_out: dict[str, str]

    @property
    def gradient_median(self) -> float:
        """Seconds of a forward and backward pass."""
        return statistics.median(self.gradient)

    @property
    def reference(self) -> Figures:
        """Figures of AdamW with ``foreach=True``."""
        return next(each for each in self.figures if each.name == REFERENCE)

    def ratio(self, figures: Figures) -> float:
        """Median time of a step over the reference's."""
        return figures.median / self.reference.median

    def ratio_of_means(self, figures: Figures) -> float:
        """Mean time of a step over the reference's."""
        return figures.mean / self.reference.mean

    def training_ratio(self, figures: Figures) -> float:
        """Time of a whole training step, forward, backward and optimizer, over that with the reference; of means."""
        return (self.gradient_median + figures.mean) / (self.gradient_median + self.reference.mean)

    def share(self, figures: Figures) -> float:
        """The optimizer's share of a whole training step, in (0, 1)."""
        return figures.mean / (self.gradient_median + figures.mean)

    def to_json(self, limits: DeviceLimits) -> dict[str, Any]:
        """JSON values, all times in seconds and memory in bytes."""
        return {
            "model": self.name,
            "parameters": self.parameters,
            "tensors": self.tensors,
            "gradient_seconds": _rounded(self.gradient),
            "optimizers": [
                {
                    "optimizer": each.name,
                    "ratio_of_medians": round(self.ratio(each), 4),
                    "ratio_of_means": round(self.ratio_of_means(each), 4),
                    "training_step_ratio": round(self.training_ratio(each), 4),
                    "share_of_training_step": round(self.share(each), 4),
                    "median_seconds": each.median,
                    "mean_seconds": each.mean,
                    "worst_seconds": each.worst,
                    "seconds": _rounded(each.seconds),
                    "flops": sum(each.flops.values()),
                    "flops_by_type": each.flops,
                    "floor_of_flops_seconds": limits.seconds_of_products(each.flops),
                    "bytes": each.moved,
                    "floor_of_bytes_seconds": limits.seconds_of_bytes(each.moved),
                    "state_bytes_per_parameter": each.state,
                    "peak_bytes_per_parameter": each.peak,
                }
                for each in self.figures
            ],
            "left_out": self.left_out,
        }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
