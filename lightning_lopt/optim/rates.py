"""Learning rates of parameter groups as factors on the steps of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def multiplier(group: Mapping[str, Any]) -> Any:
    """Factor on the steps of a group: its ``lr``, in units of its ``lr_unit`` where it has one.

    :class:`~lightning_lopt.LearnedOptimizerAdapter` sets ``lr_unit`` where it replaces an optimizer, so that a rule
    reads the rates that a module sets for AdamW as a full step, or as a share of one.

    >>> multiplier({"lr": 0.5}), multiplier({"lr": 0.0005, "lr_unit": 0.001})
    (0.5, 0.5)
    """
    unit = group.get("lr_unit")
    return group["lr"] if unit is None else group["lr"] / unit
