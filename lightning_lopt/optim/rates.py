"""Learning rates of parameter groups as factors on the steps of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def multiplier(group: Mapping[str, Any]) -> Any:
    """Factor on the steps of a group: its ``lr``, divided by its ``lr_unit`` if it has one.

    :class:`~lightning_lopt.LearnedOptimizerAdapter` sets ``lr_unit`` when it replaces an optimizer: a rate that a
    module sets for AdamW then means a full step of the rule, or a share of a full step.

    >>> multiplier({"lr": 0.5}), multiplier({"lr": 0.0005, "lr_unit": 0.001})
    (0.5, 0.5)
    """
    unit = group.get("lr_unit")
    return group["lr"] if unit is None else group["lr"] / unit
