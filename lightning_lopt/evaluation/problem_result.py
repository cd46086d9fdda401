"""What several optimizers did on one problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_lopt.evaluation.json_files import as_name, as_object, as_positive, text_of, whole_of
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics import Contest, final_loss, log_ratio
from lightning_lopt.io.files import show


@dataclass(frozen=True)
class ProblemResult:
    """What optimizers did on one problem.

    Attributes:
        name: unique among the results.
        horizon: inner steps of every run.
        loss_scale: loss of a model that knows nothing.
        measurements: by optimizer; all have the same seeds.
        family: task family it could be drawn from, empty where there is none.
        data: name of its data, empty where it has none.
        parameters: of the model.
        gradient_seconds: what forward and backward of one mini-batch take; ``None`` where not measured.
        step_seconds: what one step of an optimizer takes, as it is deployed, where measured.
    """

    name: str
    horizon: int
    loss_scale: float
    measurements: dict[str, Measurement]
    family: str = ""
    data: str = ""
    parameters: int = 0
    gradient_seconds: float | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)

    def log_ratio(self, name: str, reference: str, split: str = "train") -> float:
        r"""Median over seeds of :func:`~lightning_lopt.evaluation.metrics.log_ratio` of the final losses on a split.

        Below 0 where ``name`` ends below ``reference``; of an even number of seeds the lower of the middle two.
        """
        ours, other = (final_loss(self.measurements[which], split) for which in (name, reference))
        return float(log_ratio(ours, other, self.loss_scale).median())

    def contest(self, name: str, reference: str) -> Contest:
        """``name`` beside ``reference``, for metrics."""
        cost = math.nan
        if self.gradient_seconds is not None and {name, reference} <= set(self.step_seconds):
            ours, other = (self.gradient_seconds + self.step_seconds[which] for which in (name, reference))
            cost = other / ours
        return Contest(self.name, self.loss_scale, self.measurements[name], self.measurements[reference], cost)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "horizon": self.horizon,
            "loss_scale": self.loss_scale,
            "family": self.family,
            "data": self.data,
            "parameters": self.parameters,
            "gradient_seconds": self.gradient_seconds,
            "step_seconds": self.step_seconds,
            "measurements": {name: run.to_json() for name, run in self.measurements.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> ProblemResult:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        entry = as_object(content, "a problem")
        name = text_of(entry, "name")
        runs = as_object(entry.get("measurements"), f"the measurements of {show(name)}")
        measurements = {as_name(key): Measurement.from_json(value) for key, value in runs.items()}
        for key, run in measurements.items():
            if run.horizon != entry.get("horizon"):
                raise ValueError(
                    f"{show(name)} has the horizon {show(entry.get('horizon'))}, {show(key)} {run.horizon}"
                )
        seconds = as_object(entry.get("step_seconds"), f"the step_seconds of {show(name)}")
        gradient = entry.get("gradient_seconds")
        return cls(
            name,
            whole_of(entry, "horizon"),
            as_positive(entry.get("loss_scale"), f"the loss_scale of {show(name)}"),
            measurements,
            text_of(entry, "family"),
            text_of(entry, "data"),
            whole_of(entry, "parameters"),
            None if gradient is None else as_positive(gradient, f"the gradient_seconds of {show(name)}"),
            {as_name(key): as_positive(value, f"the step_seconds of {show(key)}") for key, value in seconds.items()},
        )
