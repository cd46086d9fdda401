"""What the learning rate of a parameter group means for the steps of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def multiplier(group: Mapping[str, Any]) -> Any:
    """What the steps of a group are multiplied by: its ``lr``, in units of its ``lr_unit`` where it has one.

    :class:`~lightning_lopt.LearnedOptimizerAdapter` sets ``lr_unit`` where it replaces an optimizer, so that the rates
    which a module writes for AdamW mean the same to a rule: all of its step, or a part of it.

    >>> multiplier({"lr": 0.5}), multiplier({"lr": 0.0005, "lr_unit": 0.001})
    (0.5, 0.5)
    """
    unit = group.get("lr_unit")
    return group["lr"] if unit is None else group["lr"] / unit
