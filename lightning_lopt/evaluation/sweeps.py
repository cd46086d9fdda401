"""Hand-designed optimizers that rules are compared with, and the learning rates among which each is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lopt.rules import AdamRule, MuonRule, ScheduleFreeAdamRule, SGDRule, UpdateRule
from lightning_lopt.rules.base import StepContext, TensorState
from lightning_lopt.rules.stacks import TensorInputs
from lightning_lopt.tasks.base import Split

HALF_DECADES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


@dataclass(frozen=True)
class Sweep:
    """An optimizer and the learning rates among which tuning chooses.

    Attributes:
        make: the rule at a learning rate.
        learning_rates: candidates; a single one means that nothing is tuned.
        description: one line for tables and help.
        chosen_by: the split whose final loss chooses: the lowest median over seeds.
        head_alone: whether only the last layer is trained, see :func:`~lightning_lopt.tasks.finetune.head_alone`.
    """

    make: Callable[[float], UpdateRule]
    learning_rates: tuple[float, ...]
    description: str
    chosen_by: Split = "train"
    head_alone: bool = False

    @property
    def tuned(self) -> bool:
        return len(self.learning_rates) > 1


class WarmUpAdamRule(AdamRule):
    """:class:`~lightning_lopt.AdamRule` whose learning rate rises over a tenth of the run and falls linearly to 0.

    Args:
        lr: the largest learning rate, > 0.
        weight_decay: decoupled weight decay, >= 0.

    Raises:
        ValueError: if a constant lies outside its range.
    """

    WARM_UP: ClassVar[float] = 0.1

    def __init__(self, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(lr, weight_decay=weight_decay)
        self.reads_horizon = True

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"schedule": "warm-up, linear"}

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        update, state = super().step(inputs, controls, at)
        warm_up = self.WARM_UP * at.total_steps
        rise = (at.scheduled_step + 1) / warm_up
        fall = (at.total_steps - at.scheduled_step) / (at.total_steps - warm_up)
        return update * torch.minimum(rise, fall).clamp(max=1.0), state


def _eight_from(lowest: float) -> tuple[float, ...]:
    first = HALF_DECADES.index(lowest)
    return HALF_DECADES[first : first + 8]


BASELINES: dict[str, Sweep] = {
    "adamw": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01, schedule="cosine"),
        _eight_from(3e-5),
        "AdamW, weight decay 0.01, cosine schedule, best of 8 learning rates",
    ),
    "sgd": Sweep(
        lambda lr: SGDRule(lr, momentum=0.9, nesterov=True, schedule="cosine"),
        _eight_from(1e-3),
        "SGD, Nesterov momentum 0.9, cosine schedule, best of 8 learning rates",
    ),
    "muon": Sweep(
        lambda lr: MuonRule(lr, weight_decay=0.1, schedule="cosine"),
        _eight_from(1e-4),
        "Muon for hidden matrices, AdamW for the rest, weight decay 0.1, cosine schedule, best of 8 learning rates",
    ),
    "schedule_free": Sweep(
        lambda lr: ScheduleFreeAdamRule(lr, weight_decay=0.01),
        _eight_from(1e-4),
        "schedule-free AdamW, weight decay 0.01, 5 % warm-up, best of 8 learning rates",
    ),
    "adam_default": Sweep(AdamRule, (1e-3,), "Adam as PyTorch has it: learning rate 1e-3, constant"),
}
"""Baselines by name. The learning rate with the lowest median final training loss over seeds is chosen."""

FINE_TUNING_BASELINES: dict[str, Sweep] = {
    "adamw_warmup": Sweep(
        WarmUpAdamRule,
        _eight_from(3e-5),
        "AdamW, weight decay 0.01, 10 % warm-up, linear decay, best of 8 learning rates in validation",
        "valid",
    ),
    "adamw_head": Sweep(
        WarmUpAdamRule,
        _eight_from(3e-4),
        "the same on the last layer alone, the rest frozen, best of 8 learning rates in validation",
        "valid",
        head_alone=True,
    ),
    "adamw_default": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01), (1e-3,), "AdamW as PyTorch has it: learning rate 1e-3, constant"
    ),
}
"""Baselines for fine-tuning by name: few examples are learned by heart, so validation chooses the learning rate."""


def sweep_of(name: str) -> Sweep:
    """The baseline of this name, of :data:`BASELINES` or :data:`FINE_TUNING_BASELINES`.

    Raises:
        ValueError: if there is none.
    """
    known = BASELINES | FINE_TUNING_BASELINES
    if name not in known:
        raise ValueError(f"there is no baseline {name!r}; use one of {', '.join(map(repr, known))}.")
    return known[name]
