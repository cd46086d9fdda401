"""Whether a saved optimizer state fits, found out before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import UpdateRule


def check_state(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], rule: UpdateRule) -> None:
    """Compare a saved state with what ``rule`` would keep for the parameters in ``groups``; values are not looked at.

    Raises:
        ValueError: if the checkpoint is of another optimizer, rule, configuration of the rule, or model.
    """
    wanted, saved_groups = groups[0]["format"], state_dict["param_groups"]
    for group in saved_groups:
        if group.get("format") != wanted:
            raise ValueError(
                f"this optimizer state has the format {group.get('format')!r} where {wanted!r} is needed; it was "
                "written by another optimizer or rule: resume with that one, or load the model's weights alone."
            )
    lost = [key for key in ("step", "skipped_steps", "shared") if key not in saved_groups[0]]
    if lost:
        raise ValueError(
            f"this optimizer state has lost its {' and '.join(lost)}; take the checkpoint as it was saved."
        )
    sizes, saved_sizes = ([len(group["params"]) for group in each] for each in (groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(
            f"this optimizer state has parameter groups of sizes {saved_sizes} where {sizes} are needed; it belongs to "
            "another model or another choice of groups."
        )
    names = [name for group in groups for name in group["names"]]
    params = [param for group in groups for param in group["params"]]
    keys = [key for group in saved_groups for key in group["params"]]
    given = [group["role"] or role for group in groups for role in group["roles"]]
    without_values = {name: torch.empty(param.shape, device="meta") for name, param in zip(names, params, strict=True)}
    state = rule.init_state(without_values, dict(zip(names, given, strict=True)))
    expected = {f"state of {name!r}": state.tensors[name] for name in names} | {"shared state": state.shared}
    found = [state_dict["state"].get(key, {}) for key in keys] + [saved_groups[0]["shared"]]
    for (what, ours), theirs in zip(expected.items(), found, strict=True):
        if _shapes(ours) != _shapes(theirs):
            raise ValueError(
                f"the saved {what} has {_shapes(theirs)} where {_shapes(ours)} is needed; the checkpoint is of a model "
                "with other shapes or roles, or of a rule with another configuration."
            )


def _shapes(tensors: Mapping[str, Any]) -> dict[str, object]:
    return {k: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for k, v in sorted(tensors.items())}
