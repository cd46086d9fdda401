"""From what a user passes as ``params`` to parameter groups with a name and a role for every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_lopt.rules.base import Role
from lightning_lopt.rules.roles import check_role, role_of_shape, roles_of

Labels = Mapping[Tensor, tuple[str, Role]]


def labels_of(module: nn.Module) -> dict[Tensor, tuple[str, Role]]:
    """Name and role of every parameter of a module, frozen ones too; roles follow from the types of its layers."""
    roles = roles_of(module)
    return {param: (name, roles[name]) for name, param in module.named_parameters()}


def named_groups(
    params: nn.Module | Iterable[Any], *, labels: Labels | None = None, first: int = 0
) -> list[dict[str, Any]]:
    """Parameter groups with ``params``, ``names`` and ``roles`` of equal length.

    Args:
        params: a module (its trainable parameters), tensors, pairs of name and tensor, or groups.
        labels: names and roles where they are known; other roles follow from the shape.
        first: number of the first group, for the names of bare tensors.

    Raises:
        TypeError: if a parameter is no tensor, or the parameters have no order.
        ValueError: if a parameter is not real floating point, or a group's role is unknown.
    """
    if isinstance(params, nn.Module):
        labels = labels_of(params)
        params = [param for param in labels if param.requires_grad]
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(_ordered(params))
    groups = entries if all(isinstance(entry, dict) for entry in entries) else [{"params": entries}]
    return [_named(group, first + index, labels or {}) for index, group in enumerate(groups)]


def _named(group: Mapping[str, Any], number: int, labels: Labels) -> dict[str, Any]:
    if "roles" in group:  # named before
        return dict(group)
    if group.get("role") is not None:
        check_role(group["role"], f"parameter group {number}")
    given = group["params"]
    members = [given] if isinstance(given, Tensor) else list(_ordered(given))
    params, names, roles = [], [], []
    for index, member in enumerate(members):
        name, param = member if isinstance(member, tuple) else (None, member)
        if not isinstance(param, Tensor):
            raise TypeError(
                f"parameter group {number} holds a {type(param).__name__} where a tensor, or a pair of name and "
                "tensor, is needed; pass model, model.parameters() or parameter groups."
            )
        if not param.is_floating_point():
            raise ValueError(f"parameters must be real floating point, got one of {param.dtype}.")
        label, role = labels.get(param, (f"group{number}.{index}", role_of_shape(tuple(param.shape))))
        params.append(param)
        names.append(name or label)
        roles.append(role)
    return {**group, "params": params, "names": names, "roles": roles}


def _ordered(members: Iterable[Any]) -> Iterable[Any]:
    if isinstance(members, set | frozenset):
        raise TypeError("parameters came in a set, whose order changes from run to run; pass a list.")
    return members
