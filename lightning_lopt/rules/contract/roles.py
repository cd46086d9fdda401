"""Assigns the role matrix, vector, embedding or head to each parameter of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

Role = Literal["matrix", "vector", "embedding", "head"]
ROLES: tuple[Role, ...] = ("matrix", "vector", "embedding", "head")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_DIRECTIONS = ("weight", "weight_orig", "weight_v", "original", "original1")  # tensors that have the shape of a weight
_NORMS = ("weight_g", "original0")


def role_of_shape(shape: tuple[int, ...]) -> Role:
    """The role of a bare tensor: a tensor of rank >= 2 is a matrix, any other tensor is a vector.

    >>> role_of_shape((32, 64)), role_of_shape((16, 3, 3, 3)), role_of_shape((32,)), role_of_shape(())
    ('matrix', 'matrix', 'vector', 'vector')
    """
    return "matrix" if len(shape) >= 2 else "vector"


def roles_of(module: nn.Module) -> dict[str, Role]:
    """Roles of the parameters of a module by the types of its layers, keyed as ``module.named_parameters()``.

    Weights of ``nn.Embedding`` are embeddings, also if they are tied to an output layer. The weight of the last
    registered linear or convolution layer is the head, if there is more than one such layer. Every other tensor of rank
    >= 2 is a matrix, and the remaining tensors are vectors. Under spectral or weight normalisation, the direction of a
    weight has the role of the weight, and its norms are a vector. No weight is computed, so no normalisation is run. A
    parameter of a lazy module whose shape is not known yet has no entry, unless the type of its layer gives its role.

    >>> roles_of(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 9, bias=False)))
    {'0.weight': 'embedding', '1.weight': 'matrix', '1.bias': 'vector', '2.weight': 'vector', '2.bias': 'vector', \
'3.weight': 'head'}
    """
    roles_by_id: dict[int, Role] = {}
    projections = [layer for layer in module.modules() if isinstance(layer, _PROJECTIONS)]
    for projection in projections:
        is_head = len(projections) > 1 and projection is projections[-1]
        roles_by_id |= _roles_of_weight(projection, "head" if is_head else "matrix")
    for layer in module.modules():
        if isinstance(layer, _EMBEDDINGS):
            roles_by_id |= _roles_of_weight(layer, "embedding")
    roles = {}
    for name, param in module.named_parameters():
        if id(param) in roles_by_id:
            roles[name] = roles_by_id[id(param)]
        elif not is_lazy(param):
            roles[name] = role_of_shape(tuple(param.shape))
    return roles


def _roles_of_weight(layer: nn.Module, role: Role) -> dict[int, Role]:
    """Roles by ``id`` of the tensors from which the weight of a layer is computed. The attribute ``weight`` is not
    read, since reading it runs a parametrization, which may change buffers."""
    tensors = dict(layer._parameters)
    if is_parametrized(layer, "weight"):
        tensors |= cast(nn.ModuleDict, layer.parametrizations)["weight"]._parameters
    roles: dict[int, Role] = {}
    for key in _DIRECTIONS:
        if tensors.get(key) is not None:
            roles[id(tensors[key])] = role
    if tensors.get("original1") is not None or tensors.get("weight_v") is not None:  # weight normalisation
        for key in _NORMS:
            if tensors.get(key) is not None:
                roles[id(tensors[key])] = "vector"
    elif tensors.get("original0") is not None:
        roles[id(tensors["original0"])] = role
    return roles


def role_table(params: Mapping[str, Tensor], roles: Mapping[str, Role]) -> str:
    """The roles as a text table, with name, shape and role of each parameter in one line.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> print(role_table(dict(model.named_parameters()), roles_of(model)))
        parameter  shape  role
        0.weight   8x4    matrix
        0.bias     8      vector
        2.weight   2x8    head
    """
    rows = [("parameter", "shape", "role")]
    rows += [(name, _shape(param), roles[name]) for name, param in params.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _shape(param: Tensor) -> str:
    return "unknown" if is_lazy(param) else "x".join(map(str, param.shape)) or "scalar"


def check_role(role: object, source: str) -> Role:
    """Return ``role`` if it is one of ``ROLES``; otherwise raise ``ValueError`` that names its ``source``."""
    if role not in ROLES:
        raise ValueError(f"{source} has role {role!r}; use one of {', '.join(map(repr, ROLES))}.")
    return role
