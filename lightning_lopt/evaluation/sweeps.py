"""Hand-designed optimizers for comparisons with rules, and the candidate learning rates for their tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement, Problem, SideBySide, measured_in_windows, run_rules
from lightning_lopt.evaluation.torch_optimizers import PackagedOptimizer, packaged_models
from lightning_lopt.meta.rule_models import RuleModels
from lightning_lopt.rules import AdamRule, MuonRule, ScheduleFreeAdamRule, SGDRule, UpdateRule
from lightning_lopt.rules.base import StepContext, TensorState
from lightning_lopt.rules.contract.stacks import TensorInputs
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Split, Task
from lightning_lopt.tasks.finetune import head_alone

SEED = 0  # seed of models and mini-batches; rules have the same seed
SIDE_BY_SIDE = 50_000_000
"""Largest number of entries of parameters that are trained at once; beyond it, learning rates take turns."""
HALF_DECADES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


@dataclass(frozen=True)
class Sweep:
    """An optimizer and the learning rates for its tuning.

    Attributes:
        make: function that makes the optimizer for a learning rate: a rule, or a class of another package.
        learning_rates: candidates; a single candidate means no tuning.
        description: one line for tables and help.
        chosen_by: split of the choice: tuning chooses the rate with the lowest median final loss over seeds.
        head_alone: whether only the last layer is trained, see :func:`~lightning_lopt.tasks.finetune.head_alone`.
        label: name in reports; if it is empty, reports use the name in :data:`BASELINES`.

    >>> from lightning_lopt import AdamRule
    >>> Sweep(AdamRule, (0.01, 0.1), "Adam at the best of two rates").chosen_by
    'train'
    """

    make: Callable[[float], UpdateRule | PackagedOptimizer]
    learning_rates: tuple[float, ...]
    description: str
    chosen_by: Split = "train"
    head_alone: bool = False
    label: str = ""

    @property
    def tuned(self) -> bool:
        return len(self.learning_rates) > 1

    def require(self) -> None:
        """Check that this installation can run the optimizer.

        Raises:
            ImportError: if the package of the optimizer is not installed.
        """
        if self.packaged is not None:
            self.packaged.require()

    @property
    def available(self) -> bool:
        """Whether this installation can run the optimizer."""
        return self.packaged is None or self.packaged.installed_version is not None

    @property
    def packaged(self) -> PackagedOptimizer | None:
        """The class of another package at the first learning rate; ``None`` for a rule."""
        optimizer = self.make(self.learning_rates[0])
        return optimizer if isinstance(optimizer, PackagedOptimizer) else None

    @property
    def identity(self) -> list[object]:
        """The optimizer, its version and all settings except the learning rate, as JSON values."""
        optimizer = self.make(1.0)
        name = optimizer.full_name if isinstance(optimizer, PackagedOptimizer) else optimizer.rule_name
        return [name, {key: value for key, value in optimizer.config.items() if key != "lr"}]

    def start(self, task: Task, horizon: int, *, seeds: int, device: torch.device | str) -> SideBySide:
        """Models before their first step, ``seeds`` models for each learning rate; see :meth:`run`."""
        task = head_alone(task) if self.head_alone else task
        rules, packaged = self._optimizers_at(self.learning_rates, device)
        if rules:
            return RuleModels(rules, task, horizon, seeds, SEED)
        return packaged_models(packaged, task, horizon, seeds=seeds, seed=SEED, device=device)

    def run(self, problem: Problem, *, seeds: int, device: torch.device | str) -> list[Measurement]:
        """A measurement at each learning rate.

        Raises:
            ImportError: if the package of the optimizer is not installed.
        """
        trained = replace(problem, task=head_alone(problem.task)) if self.head_alone else problem
        entries = sum(value.numel() for value in trained.task.init(generator(SEED, "key")).values())
        rates_at_once = max(1, SIDE_BY_SIDE // (entries * seeds))
        measurements: list[Measurement] = []
        for first in range(0, len(self.learning_rates), rates_at_once):
            rules, packaged = self._optimizers_at(self.learning_rates[first : first + rates_at_once], device)
            if rules:
                measurements += run_rules(rules, trained, seeds=seeds, seed=SEED)
            else:
                task, horizon = trained.task, trained.horizon
                models = packaged_models(packaged, task, horizon, seeds=seeds, seed=SEED, device=device)
                measurements += measured_in_windows(models, task, horizon, copies=len(packaged))
        return measurements

    def _optimizers_at(
        self, rates: Sequence[float], device: torch.device | str
    ) -> tuple[list[UpdateRule], list[PackagedOptimizer]]:
        """The optimizers at some learning rates: rules, or classes of another package."""
        optimizers = [self.make(rate) for rate in rates]
        return (
            [optimizer.to(device) for optimizer in optimizers if isinstance(optimizer, UpdateRule)],
            [optimizer for optimizer in optimizers if isinstance(optimizer, PackagedOptimizer)],
        )


class WarmUpAdamRule(AdamRule):
    """:class:`~lightning_lopt.AdamRule` with a learning rate that rises over a tenth of the run, then falls to 0.

    Both parts of the schedule are linear.

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
    start = HALF_DECADES.index(lowest)
    return HALF_DECADES[start : start + 8]


def _soap(lr: float) -> PackagedOptimizer:
    """SOAP with the default settings of the class, which are the settings of SOAP's authors."""
    options = {"betas": [0.95, 0.95], "weight_decay": 0.01, "precondition_frequency": 10}
    return PackagedOptimizer("pytorch_optimizer", "4.1.0", "SOAP", lr, options, schedule="cosine", period=10)


BASELINES: dict[str, Sweep] = {
    "adamw": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01, schedule="cosine"),
        _eight_from(3e-5),
        "AdamW, weight decay 0.01, cosine schedule, best of 8 learning rates",
        label="tuned AdamW",
    ),
    "sgd": Sweep(
        lambda lr: SGDRule(lr, momentum=0.9, nesterov=True, schedule="cosine"),
        _eight_from(1e-3),
        "SGD, Nesterov momentum 0.9, cosine schedule, best of 8 learning rates",
        label="tuned SGD",
    ),
    "muon": Sweep(
        lambda lr: MuonRule(lr, weight_decay=0.1, schedule="cosine"),
        _eight_from(1e-4),
        "Muon for hidden matrices, AdamW for other tensors, weight decay 0.1, cosine schedule, best of 8 rates",
        label="tuned Muon",
    ),
    "schedule_free": Sweep(
        lambda lr: ScheduleFreeAdamRule(lr, weight_decay=0.01),
        _eight_from(1e-4),
        "schedule-free AdamW, weight decay 0.01, 5 % warm-up, best of 8 learning rates",
        label="tuned schedule-free AdamW",
    ),
    "soap": Sweep(
        _soap,
        HALF_DECADES[4:9],
        "SOAP of pytorch_optimizer, weight decay 0.01, cosine schedule, best of 5 learning rates",
        label="tuned SOAP",
    ),
    "adam_default": Sweep(
        AdamRule,
        (1e-3,),
        "Adam with PyTorch's default settings: learning rate 1e-3, constant",
        label="Adam at its default rate",
    ),
    "adamw_1e-3": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01, schedule="cosine"),
        (1e-3,),
        "AdamW, weight decay 0.01, cosine schedule, untuned: learning rate 1e-3",
        label="AdamW at 1e-3",
    ),
    "soap_3e-3": Sweep(
        _soap,
        (3e-3,),
        "SOAP of pytorch_optimizer, weight decay 0.01, cosine schedule, untuned: learning rate 3e-3",
        label="SOAP at 3e-3",
    ),
    "prodigy": Sweep(
        lambda lr: PackagedOptimizer("prodigyopt", "1.1.2", "Prodigy", lr, schedule="cosine"),
        (1.0,),
        "Prodigy of prodigyopt, which estimates its step size, cosine schedule, untuned: learning rate 1",
        label="Prodigy",
    ),
    "schedule_free_2.5e-3": Sweep(
        lambda lr: PackagedOptimizer("schedulefree", "1.4.1", "AdamWScheduleFree", lr, warmup=0.05),
        (2.5e-3,),
        "schedule-free AdamW of schedulefree, 5 % warm-up, untuned: learning rate 2.5e-3",
        label="schedule-free AdamW at 2.5e-3",
    ),
}
"""Baselines by name. Tuning chooses the learning rate with the lowest median final training loss over seeds.

``"schedule_free"`` is the rule of this package, tuned; ``"schedule_free_2.5e-3"`` is the class of its authors, untuned.
"""

FINE_TUNING_BASELINES: dict[str, Sweep] = {
    "adamw_warmup": Sweep(
        WarmUpAdamRule,
        _eight_from(3e-5),
        "AdamW, weight decay 0.01, 10 % warm-up, linear decay, best of 8 learning rates in validation",
        "valid",
        label="tuned AdamW, warm-up",
    ),
    "adamw_head": Sweep(
        WarmUpAdamRule,
        _eight_from(3e-4),
        "adamw_warmup on the last layer alone, other layers frozen, best of 8 learning rates in validation",
        "valid",
        head_alone=True,
        label="tuned AdamW, head alone",
    ),
    "adamw_default": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01),
        (1e-3,),
        "AdamW with PyTorch's default settings: learning rate 1e-3, constant",
        label="AdamW at its default rate",
    ),
}
"""Baselines for fine-tuning, by name. Models memorise few examples, so the validation loss chooses the rate."""


def sweep_of(name: str) -> Sweep:
    """The baseline with this name, from :data:`BASELINES` or :data:`FINE_TUNING_BASELINES`.

    Raises:
        ValueError: if there is no such baseline.

    >>> sweep_of("adamw_1e-3").learning_rates
    (0.001,)
    """
    sweeps = BASELINES | FINE_TUNING_BASELINES
    if name not in sweeps:
        raise ValueError(f"there is no baseline {name!r}; use one of {', '.join(map(repr, sweeps))}.")
    return sweeps[name]


def packages_of(names: Sequence[str]) -> dict[str, str]:
    """Versions of the other packages whose optimizers are among the baselines ``names``, by package."""
    packaged = [optimizer for optimizer in (sweep_of(name).packaged for name in names) if optimizer is not None]
    return {
        optimizer.package: optimizer.installed_version
        or f"{optimizer.version} (not installed: known results, no costs)"
        for optimizer in packaged
    }
