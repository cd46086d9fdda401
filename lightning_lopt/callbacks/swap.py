"""Replaces the optimizers that a module configures by learned optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_lopt.optim import LearnedOptimizer, labels_of, named_groups
from lightning_lopt.rules.base import ROLES

SCHEDULERS_KEYS = (
    "initial_lr",
    "max_lr",
    "min_lr",
    "base_momentum",
    "max_momentum",
)  # keys that schedulers add to groups

BuildOptimizer = Callable[[Any], LearnedOptimizer]


class AfterSetup:
    """Calls a function when the strategy of a Trainer has set up its optimizers.

    Until :meth:`remove`, this object replaces a method of the strategy of the Trainer; the module, its copies and its
    pickles do not change.
    """

    def __init__(self, trainer: L.Trainer, on_set_up: Callable[[L.Trainer], None]) -> None:
        self._strategy = strategy = trainer.strategy
        set_up = strategy.setup_optimizers

        def setup_optimizers(trainer: L.Trainer) -> None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*this fit will run with no optimizer.*")
                set_up(trainer)
            on_set_up(trainer)

        strategy.setup_optimizers = setup_optimizers  # type: ignore[method-assign]

    def remove(self) -> None:
        self._strategy.__dict__.pop("setup_optimizers", None)


def swap_optimizers(trainer: L.Trainer, build: BuildOptimizer) -> None:
    """Replace the optimizers of a Trainer by learned optimizers for the same parameters in the same groups.

    The schedulers stay with the replaced optimizers, which make no steps: a module may step the schedulers, log their
    rate or look them up.

    Args:
        trainer: a Trainer whose strategy has set up its optimizers.
        build: makes a learned optimizer from a module or from named groups. The ``lr`` and ``weight_decay`` of this
            optimizer apply to the groups with the largest configured rate and decay.

    Raises:
        ValueError: if an optimizer maximises.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    labels = labels_of(module)
    learned, without_effect = [], []
    for original in strategy.optimizers:
        if type(original).__name__ == "_MockOptimizer":  # configure_optimizers returned None
            learned.append(build(module))
            continue
        groups = original.param_groups
        roles = [group.get("role") if group.get("role") in ROLES else None for group in groups]
        pairs = zip(groups, roles, strict=True)
        groups_with_roles = [{"params": group["params"], "role": role} for group, role in pairs]
        learned.append(build(named_groups(groups_with_roles, labels=labels)))
        learned[-1].labels = labels
        without_effect += _copy_settings(original, learned[-1])
        original._opt_called = True  # type: ignore[attr-defined]  # its scheduler warns if this is not set
    schedulers = [type(config.scheduler).__name__ for config in strategy.lr_scheduler_configs]
    if schedulers:
        without_effect.append(f"{', '.join(schedulers)}, whose rate is computed but not used")
    strategy.optimizers = list(learned)
    if without_effect:
        rank_zero_warn(
            "The rule sets step sizes over the run and weight decay by itself, so some settings of the optimizer that "
            f"it replaces have no effect: {'; '.join(without_effect)}."
        )


def _copy_settings(original: Optimizer, learned: LearnedOptimizer) -> list[str]:
    """Copy rates, decays and further keys of groups from ``original`` to ``learned``; return settings without effect.

    The ``lr`` of a group keeps the unit of the module: its value is the configured rate, and a step divides it by
    ``lr_unit``, the largest configured rate, or 1 if all rates are 0. Code that sets rates later, by hand or in a
    callback, therefore sets them in its usual unit.
    """
    groups = original.param_groups
    if any(group.get("maximize") for group in groups):
        raise ValueError(
            f"{type(original).__name__}(maximize=True) cannot be replaced by a rule, which minimises; return the "
            "negative of the loss from training_step, without maximize=True."
        )
    rates = [_configured_rate(group) for group in groups]
    decays = [float(group.get("weight_decay") or 0.0) for group in groups]
    factor, decay = learned.defaults["lr"], learned.defaults["weight_decay"]
    without_effect = []
    if max(rates) == 0.0:
        without_effect.append(
            "lr=0 in all groups, which counts as no choice of a rate (one group among others stays frozen)"
        )
        rates = [factor] * len(rates)
    largest_rate, largest_decay = max(rates), max(decays)
    unit = largest_rate / factor if largest_rate and factor else 1.0
    for group, original_group, rate, group_decay in zip(learned.param_groups, groups, rates, decays, strict=True):
        group["lr"] = rate if factor else 0.0
        group["lr_unit"] = unit
        group["weight_decay"] = decay * (group_decay / largest_decay if largest_decay else 1.0)
        for key, value in original_group.items():
            if key not in SCHEDULERS_KEYS:
                group.setdefault(key, value)
    learned.defaults.update(lr=largest_rate if factor else 0.0, lr_unit=unit)  # for groups that are added later
    if len(set(decays)) > 1 and not decay:
        without_effect.append(f"weight_decay that differs by group ({', '.join(f'{value:g}' for value in decays)})")
    return without_effect


def _configured_rate(group: dict[str, Any]) -> float:
    """The rate of a group before its scheduler changed it; some schedulers change it in their constructor."""
    for key in ("max_lr", "initial_lr", "lr"):
        if key in group:
            return float(group[key])
    return 1.0
