"""From what a user passes as ``params`` to parameter groups with a name and a role for every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_lopt.rules.base import Role
from lightning_lopt.rules.roles import check_role, role_of_shape, roles_of


def named_groups(
    params: nn.Module | Iterable[Any], *, first: int = 0, roles: Mapping[int, Role] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups with ``params``, ``names`` and ``roles`` of equal length.

    Args:
        params: a module (its trainable parameters, roles by layer type), tensors, pairs of name and tensor, or groups.
        first: number of the first group, for the names of bare tensors.
        roles: role by ``id`` of tensor, where one is known; others follow from the shape.

    Raises:
        ValueError: if there is no parameter, or a group's role is unknown.
    """
    known = dict(roles or {})
    if isinstance(params, nn.Module):
        by_name = roles_of(params)
        named = [(name, param) for name, param in params.named_parameters() if param.requires_grad]
        known.update({id(param): by_name[name] for name, param in named})
        entries: list[Any] = named
    else:
        entries = [params] if isinstance(params, Tensor) else list(params)
    if not entries:
        raise ValueError("LearnedOptimizer got no parameters; pass model, model.parameters() or parameter groups.")
    groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
    return [_named(group, first + index, known) for index, group in enumerate(groups)]


def _named(group: Mapping[str, Any], number: int, known: Mapping[int, Role]) -> dict[str, Any]:
    if "roles" in group:  # named before
        return dict(group)
    given = group["params"]
    members = [given] if isinstance(given, Tensor) else list(given)
    pairs = [
        member if isinstance(member, tuple) else (f"group{number}.{index}", member)
        for index, member in enumerate(members)
    ]
    if group.get("role") is not None:
        check_role(group["role"], f"parameter group {number}")
    return {
        **group,
        "params": [param for _, param in pairs],
        "names": [name for name, _ in pairs],
        "roles": [known.get(id(param), role_of_shape(tuple(param.shape))) for _, param in pairs],
    }
