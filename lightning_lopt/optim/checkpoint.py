"""Checks of a saved optimizer state, made before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.copies import BEST_STATISTICS
from lightning_lopt.optim.groups import Member
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.contract.roles import check_role

COUNTERS = ("step", "skipped_steps", "skipped_in_a_row")
LARGEST_RATE = 1e15  # a larger integer may not fit into a tensor
_NEW_COUNTERS = {"skipped_in_a_row"}  # keys that older checkpoints do not have


def fitting_state(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    members: Sequence[Member],
    rule: UpdateRule,
) -> dict[str, Any]:
    """A saved state with its parameters in the order of ``groups``, after a check against a new state of ``rule``.

    Parameters are matched by their saved names if both sides have the same names, else by their position. A parameter
    without saved state begins anew at its next gradient. Values in tensors are not checked.

    Args:
        state_dict: result of :meth:`LearnedOptimizer.state_dict`, possibly damaged or of another optimizer; it is not
            changed.
        groups: the present parameter groups.
        members: the present parameters.
        rule: the present rule.

    Returns:
        a copy of the outer dictionaries and lists; tensors are shared.

    Raises:
        ValueError: if the checkpoint is of another optimizer, rule, configuration of the rule, or model, or is damaged.
    """
    states, saved_groups = _states_and_groups(state_dict)
    if not any(member.param.is_meta for member in members):
        _check_values(states, saved_groups)
    needed_format = groups[0]["format"]
    for group in saved_groups:
        if group.get("format") != needed_format:
            raise ValueError(
                f"this optimizer state has the format {group.get('format')!r} where {needed_format!r} is needed; it "
                "was written by another optimizer or rule: resume with that rule, or load only the weights of the "
                "model."
            )
    _check_counters(saved_groups[0])
    sizes, saved_sizes = ([len(group["params"]) for group in group_list] for group_list in (groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(
            f"this optimizer state has parameter groups of sizes {saved_sizes} where {sizes} are needed; it belongs to "
            "another model or another choice of groups."
        )
    for number, group in enumerate(saved_groups):
        _check_settings(group, number)
    keys = _keys_in_order(saved_groups, members)
    _check_tensors(states, saved_groups[0].get("shared", {}), keys, members, rule)
    remaining = iter(keys)
    ordered = [{**group, "params": [next(remaining) for _ in group["params"]]} for group in saved_groups]
    present_keys = set(keys)
    return {**state_dict, "state": {k: v for k, v in states.items() if k in present_keys}, "param_groups": ordered}


def _states_and_groups(state_dict: Any) -> tuple[Mapping[Any, Any], list[Mapping[str, Any]]]:
    """The states by key, and the groups, after a check of their types."""
    if not isinstance(state_dict, Mapping):
        raise _damaged(f"it is a {type(state_dict).__name__} and no dictionary")
    states, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(states, Mapping) or not isinstance(groups, list) or not groups:
        raise _damaged("it has no 'state' and 'param_groups'")
    for group in groups:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            raise _damaged("a parameter group is no dictionary with 'params'")
    keys = [key for group in groups for key in group["params"]]
    if any(type(key) not in (int, str) for key in keys) or len(set(keys)) != len(keys):
        raise _damaged("its parameters do not have unique keys")
    if any(not isinstance(state, Mapping) for state in states.values()):
        raise _damaged("the state of a parameter is no dictionary")
    return states, groups


def _check_values(states: Mapping[Any, Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    tensors = [value for mapping in (*states.values(), *groups) for value in mapping.values()]
    shared = groups[0].get("shared")
    tensors += list(shared.values()) if isinstance(shared, Mapping) else []
    if any(isinstance(value, Tensor) and value.is_meta for value in tensors):
        raise _damaged("it holds tensors without values (on the meta device)")


def _check_counters(first_group: Mapping[str, Any]) -> None:
    missing = [key for key in COUNTERS if key not in first_group and key not in _NEW_COUNTERS]
    if missing:
        raise _damaged(f"it lacks {' and '.join(missing)}")
    for key in COUNTERS:
        value = first_group.get(key, torch.zeros((), dtype=torch.int64))
        is_counter = isinstance(value, Tensor) and value.shape == () and value.dtype == torch.int64
        if not is_counter or (value.device.type != "meta" and int(value) < 0):
            raise _damaged(f"its {key} is no number of steps")
    total, schedule, epochs = first_group.get("total_steps"), first_group.get("schedule"), first_group.get("epochs")
    if total is not None and (type(total) is not int or total < 1):
        raise _damaged(f"its total_steps is {total!r}")
    if epochs is not None and not (type(epochs) is float and 0 < epochs < math.inf):
        raise _damaged(f"its epochs is {epochs!r}")
    statistics = first_group.get(BEST_STATISTICS, [])
    if not (isinstance(statistics, list) and all(map(_is_dense, statistics))):
        raise _damaged("its running statistics are no list of tensors")
    if schedule is not None and not (_is_real(schedule) and schedule.shape == (2,)):
        raise _damaged("its schedule is no pair of numbers")


def _check_settings(group: Mapping[str, Any], number: int) -> None:
    for key in ("lr", "weight_decay"):
        value = group.get(key)
        if isinstance(value, Tensor):
            fits = value.numel() == 1 and _is_real(value)
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_RATE
        if not fits:
            raise _damaged(f"{key} of parameter group {number} is {value!r}")
    unit = group.get("lr_unit", 1.0)
    if not (isinstance(unit, int | float) and 0 < unit <= LARGEST_RATE):
        raise _damaged(f"lr_unit of parameter group {number} is {unit!r}")
    if group.get("role") is not None:
        check_role(group["role"], f"parameter group {number} of this optimizer state")


def _keys_in_order(saved_groups: Sequence[Mapping[str, Any]], members: Sequence[Member]) -> list[Any]:
    """The saved key of each present parameter: by name if the names are the same, else by position."""
    keys = [key for group in saved_groups for key in group["params"]]
    names = [name for group in saved_groups for name in _names(group)]
    present = [member.name for member in members]
    if names != present and len(set(names)) == len(names) and set(names) == set(present):
        by_name = dict(zip(names, keys, strict=True))
        return [by_name[name] for name in present]
    return keys


def _names(group: Mapping[str, Any]) -> list[Any]:
    names = group.get("names")
    fits = isinstance(names, list) and len(names) == len(group["params"]) and all(isinstance(n, str) for n in names)
    return names if fits and names is not None else [None] * len(group["params"])


def _check_tensors(
    states: Mapping[Any, Mapping[str, Any]],
    shared: Any,
    keys: Sequence[Any],
    members: Sequence[Member],
    rule: UpdateRule,
) -> None:
    """Check shapes and types of all state tensors against those of a new state."""
    if not isinstance(shared, Mapping):
        raise _damaged("the shared state is no dictionary")
    with_state = [(key, member) for key, member in zip(keys, members, strict=True) if states.get(key)]
    params = {member.name: _without_values(member.param) for _, member in with_state}
    expected_state = rule.init_state(params, {member.name: member.role for _, member in with_state})
    pairs = [(f"state of {m.name!r}", expected_state.tensors[m.name], states[key]) for key, m in with_state]
    if with_state or shared:
        any_params = params or {"any": torch.empty(1, device="meta")}
        pairs.append(("shared state", expected_state.shared or rule.init_state(any_params, {}).shared, shared))
    for subject, expected, saved in pairs:
        if _shapes(expected) != _shapes(saved):
            raise ValueError(
                f"the saved {subject} has {_shapes(saved)} where {_shapes(expected)} is needed; the checkpoint is of a "
                "model with other shapes or roles, or of a rule with another configuration."
            )
        for key, value in saved.items():
            if expected[key].is_floating_point() != _is_real(value) or value.layout != torch.strided:
                raise _damaged(f"{key!r} in the saved {subject} has the type {value.dtype}")


def _without_values(param: Tensor) -> Tensor:
    shape = (*param.shape, 2) if param.is_complex() else param.shape
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _shapes(tensors: Mapping[Any, Any]) -> dict[str, object]:
    return {
        str(k): tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        for k, v in sorted(tensors.items(), key=lambda entry: str(entry[0]))
    }


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_dense(value: Any) -> bool:
    return _is_real(value) and value.layout == torch.strided and not value.is_meta


def _damaged(damage: str) -> ValueError:
    return ValueError(f"this optimizer state is damaged: {damage}; use an undamaged copy of the checkpoint.")
