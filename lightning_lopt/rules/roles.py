"""Which parameter is a hidden matrix, a vector, an embedding or the head of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lightning_lopt.rules.base import ROLES, Role

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def role_of_shape(shape: tuple[int, ...]) -> Role:
    """The role of a bare tensor: rank 2 and up is a matrix, the rest a vector.

    >>> role_of_shape((32, 64)), role_of_shape((16, 3, 3, 3)), role_of_shape((32,)), role_of_shape(())
    ('matrix', 'matrix', 'vector', 'vector')
    """
    return "matrix" if len(shape) >= 2 else "vector"


def check_role(role: object, where: str) -> Role:
    """Return ``role`` if it is one, else raise ``ValueError`` naming ``where`` it came from."""
    if role not in ROLES:
        raise ValueError(f"{where} has role {role!r}; use one of {', '.join(map(repr, ROLES))}.")
    return role


def roles_of(module: nn.Module) -> dict[str, Role]:
    """Roles of a module's parameters by module type, keyed as ``module.named_parameters()``.

    Weights of ``nn.Embedding`` are embeddings (also where they are tied to an output layer); the weight of the last
    registered linear or convolution layer is the head, if there is more than one such layer; every other tensor of
    rank 2 and up is a matrix, the rest are vectors.

    >>> roles_of(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 9, bias=False)))
    {'0.weight': 'embedding', '1.weight': 'matrix', '1.bias': 'vector', '2.weight': 'vector', '2.bias': 'vector', \
'3.weight': 'head'}
    """
    projections = [child.weight for child in module.modules() if isinstance(child, _PROJECTIONS)]
    special: dict[int, Role] = {}
    if len(projections) > 1:
        special[id(projections[-1])] = "head"
    for child in module.modules():
        if isinstance(child, _EMBEDDINGS):
            special[id(child.weight)] = "embedding"
    return {
        name: special.get(id(param), role_of_shape(tuple(param.shape))) for name, param in module.named_parameters()
    }


def role_table(params: Mapping[str, Tensor], roles: Mapping[str, Role]) -> str:
    """The roles as a table for people: name, shape, role, one line a parameter."""
    rows = [("parameter", "shape", "role")]
    rows += [(name, "x".join(map(str, param.shape)) or "scalar", roles[name]) for name, param in params.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
