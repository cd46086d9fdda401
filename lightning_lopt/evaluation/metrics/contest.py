"""What every metric looks at: an optimizer and a reference on one problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_lopt.evaluation.measurement import Measurement


@dataclass(frozen=True)
class Contest:
    """An optimizer beside a reference, on the same initial models and mini-batches.

    Attributes:
        problem: its name, unique in what a metric sees.
        loss_scale: loss of a model that knows nothing, > 0.
        ours: what the optimizer did.
        reference: what it is compared with did; of the same horizon and number of seeds.
        step_cost: seconds that one training step takes with the reference, over those with ours; NaN where unknown.

    Raises:
        ValueError: if the two do not belong together.
    """

    problem: str
    loss_scale: float
    ours: Measurement
    reference: Measurement
    step_cost: float = math.nan

    def __post_init__(self) -> None:
        for what, ours, other in (
            ("horizon", self.ours.horizon, self.reference.horizon),
            ("number of seeds", len(self.ours.final_train), len(self.reference.final_train)),
        ):
            if ours != other:
                raise ValueError(
                    f"on {self.problem!r} {self.ours.optimizer} has the {what} {ours} and {self.reference.optimizer} "
                    f"{other}; compare runs of the same kind."
                )
        if not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise ValueError(f"the loss scale of {self.problem!r} must be a number above 0, got {self.loss_scale!r}.")
