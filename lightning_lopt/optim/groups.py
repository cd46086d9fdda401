"""Builds parameter groups from the argument ``params``, with a name and a role for every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_lopt.rules.base import Role
from lightning_lopt.rules.contract.roles import check_role, role_of_shape, roles_of

Labels = Mapping[Tensor, tuple[str, Role | None]]
_NUMBERED = re.compile(r"group\d+\.\d+")  # the name of a bare tensor


class Member(NamedTuple):
    """A parameter with its group, name and role.

    Attributes:
        group: the parameter group.
        name: name of the parameter, unique in the optimizer.
        role: role of the tensor; without other information it follows from the shape of the tensor.
        param: the tensor.
    """

    group: dict[str, Any]
    name: str
    role: Role
    param: Tensor


def labels_of(module: nn.Module) -> dict[Tensor, tuple[str, Role | None]]:
    """Name and role of every parameter of a module, also of frozen ones; roles follow from the types of its layers.

    The role is ``None`` if it follows from a shape that is not known yet (lazy modules).

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
        >>> list(labels_of(model).values())
        [('0.weight', 'embedding'), ('1.weight', 'matrix'), ('1.bias', 'vector')]
    """
    roles = roles_of(module)
    return {param: (name, roles.get(name)) for name, param in module.named_parameters()}


def members_of(groups: Iterable[dict[str, Any]], labels: Labels) -> Iterator[Member]:
    """All parameters of an optimizer in order; a parameter that was appended to a group later gets its name here."""
    for number, group in enumerate(groups):
        names, roles = group["names"], group["roles"]
        for index, param in enumerate(group["params"]):
            if index >= len(names):
                name, role = _label(param, labels, number, index)
                names.append(name)
                roles.append(role)
            yield Member(group, names[index], group["role"] or roles[index] or _role_by_shape(param), param)


def named_groups(
    params: nn.Module | Iterable[Any], *, labels: Labels | None = None, first: int = 0
) -> list[dict[str, Any]]:
    """Parameter groups with ``params``, ``names`` and ``roles`` of equal length.

    Args:
        params: a module (its trainable parameters), tensors, pairs of name and tensor, or groups. Frozen tensors may be
            of any type.
        labels: known names and roles; other roles follow from the shape.
        first: number of the first group, for the names of bare tensors.

    Raises:
        TypeError: if a parameter is no tensor, the parameters have no order, or a class came in place of a module.
        ValueError: if the role of a group is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> (group,) = named_groups(model)
        >>> list(zip(group["names"], group["roles"]))
        [('0.weight', 'matrix'), ('0.bias', 'vector'), ('2.weight', 'head')]
        >>> (group,) = named_groups([{"params": [torch.ones(3, 3)], "lr": 0.5}])
        >>> group["names"], group["roles"], group["lr"]
        (['group0.0'], ['matrix'], 0.5)
    """
    if isinstance(params, type):
        raise TypeError(f"got the class {params.__name__} where parameters are needed; pass {params.__name__}(...).")
    if isinstance(params, nn.Module):
        labels = labels_of(params)
        params = [param for param in labels if param.requires_grad]
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(_ordered(params))
    groups = entries if all(isinstance(entry, dict) for entry in entries) else [{"params": entries}]
    return [_with_names(group, first + index, labels or {}) for index, group in enumerate(groups)]


def relabel(groups: Iterable[dict[str, Any]], labels: Labels) -> None:
    """Give bare tensors (those with a numbered name) the names and roles of ``labels``, in place.

    Nothing changes if the new names would not be unique.
    """
    groups = list(groups)
    renamed = [
        [
            (labels[param] if _NUMBERED.fullmatch(name) and param in labels else (name, role))
            for param, name, role in zip(group["params"], group["names"], group["roles"], strict=False)
        ]
        for group in groups
    ]
    names = [name for group in renamed for name, _ in group]
    if len(set(names)) == len(names):
        for group, pairs in zip(groups, renamed, strict=True):
            group["names"], group["roles"] = [name for name, _ in pairs], [role for _, role in pairs]


def _with_names(group: Mapping[str, Any], number: int, labels: Labels) -> dict[str, Any]:
    if "roles" in group:  # the group has names already
        return dict(group)
    if group.get("role") is not None:
        check_role(group["role"], f"parameter group {number}")
    group_params = group["params"]
    entries = [group_params] if isinstance(group_params, Tensor) else list(_ordered(group_params))
    params, names, roles = [], [], []
    for index, entry in enumerate(entries):
        name, param = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
        if not isinstance(param, Tensor):
            raise TypeError(
                f"parameter group {number} holds a {type(param).__name__} where a tensor, or a pair of name and "
                "tensor, is needed; pass model, model.parameters() or parameter groups."
            )
        label, role = _label(param, labels, number, index)
        params.append(param)
        names.append(name or label)
        roles.append(role)
    return {**group, "params": params, "names": names, "roles": roles}


def _label(param: Tensor, labels: Labels, number: int, index: int) -> tuple[str, Role | None]:
    """Name and role of a bare tensor; the role is ``None`` if the shape is not known yet."""
    if param in labels:
        return labels[param]
    return f"group{number}.{index}", None if is_lazy(param) else _role_by_shape(param)


def _role_by_shape(param: Tensor) -> Role:
    """The role by shape; a lazy parameter counts as a vector until it has a shape, and has no gradient before."""
    return "vector" if is_lazy(param) else role_of_shape(tuple(param.shape))


def _ordered(entries: Iterable[Any]) -> Iterable[Any]:
    if isinstance(entries, set | frozenset):
        raise TypeError("parameters came in a set, whose order changes from run to run; pass a list.")
    if not isinstance(entries, Iterable):
        raise TypeError(
            f"got a {type(entries).__name__} where parameters are needed; pass model, model.parameters() or parameter "
            "groups."
        )
    return entries
