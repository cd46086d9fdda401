"""Separates a guard and the copies of parameters from a saved state, which is then checked without them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.copies import COPIES, GUARD_COPIES, without_copies
from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard import LossGuard
from lightning_lopt.optim.guard_run import Guard
from lightning_lopt.optim.precision import real

KEY = "guard"  # in the first parameter group


def resumed(guard: Guard | None, saved: Any) -> tuple[Guard | None, Any, dict[Any, dict[str, Tensor]]]:
    """The guard of a saved optimizer state, the state without this guard and without copies, and the copies by key.

    Args:
        guard: the present guard; ``None`` drops a saved guard.
        saved: an optimizer state. A state without parameters and groups is returned unchanged; a later check refuses
            it.

    Raises:
        ValueError: if the saved guard is damaged.
    """
    groups, states = (saved.get(key) if isinstance(saved, Mapping) else None for key in ("param_groups", "state"))
    if not (isinstance(groups, list) and groups and isinstance(groups[0], Mapping) and isinstance(states, Mapping)):
        return guard, saved, {}
    if not all(isinstance(state, Mapping) for state in states.values()):
        return guard, saved, {}
    first_group = {key: value for key, value in groups[0].items() if key != KEY}
    kept_keys = [key for key in COPIES if guard is not None or key not in GUARD_COPIES]
    copies = {key: {k: state[k] for k in kept_keys if k in state} for key, state in states.items()}
    states_to_check = {key: without_copies(state) for key, state in states.items()}
    restored = Guard(LossGuard() if guard is None else guard.settings)
    restored.restore(groups[0].get(KEY))
    if guard is None and restored.cause is not None:
        warnings.warn(
            f"this optimizer state is of a run with a guard that {restored.state}; without guard=True the rule "
            "begins anew.",
            stacklevel=5,
        )
        states_to_check, first_group["shared"] = {}, {}
    return (
        guard and restored,
        {**saved, "state": states_to_check, "param_groups": [first_group, *groups[1:]]},
        copies,
    )


def with_copies(
    checked_state: Mapping[str, Any], copies: Mapping[Any, Mapping[str, Tensor]], members: Sequence[Member]
) -> Any:
    """A checked state in the order of ``members``, with the copies that have the shape of their parameter."""
    keys = [key for group in checked_state["param_groups"] for key in group["params"]]
    states = dict(checked_state["state"])
    for key, member in zip(keys, members, strict=True):
        fitting_copies = {k: x for k, x in copies.get(key, {}).items() if _fits(x, member)}
        if any(k not in fitting_copies for k in GUARD_COPIES):
            fitting_copies = {k: x for k, x in fitting_copies.items() if k not in GUARD_COPIES}
        if states.get(key):
            states[key] = {**states[key], **fitting_copies}
    return {**checked_state, "state": states}


def _fits(copy: Any, member: Member) -> bool:
    is_plain = isinstance(copy, Tensor) and copy.layout == torch.strided and not copy.is_meta
    return is_plain and copy.is_floating_point() and copy.shape == real(member.param).shape
