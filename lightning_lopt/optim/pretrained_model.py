"""Tests for whether a model was trained before."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.sharding import is_shard
from lightning_lopt.rules.residual_parts.structure import Signs, depth_of, signs_of, trained

SPREAD = 1e-3  # weights of a normalisation layer with a larger spread are not initial values


@torch.no_grad()
def looks_pretrained(module: nn.Module) -> str | None:
    """A clause that names a sign that ``module`` was trained; ``None`` without such a sign.

    The test reads normalisation layers: every initialisation gives all channels of a layer the same weight and the
    same bias, and no initialisation counts batches. Frozen layers are ignored, since a rule does not change them.
    Reading the layers waits for the device.

    Example:
        >>> layer = nn.LayerNorm(4)
        >>> looks_pretrained(layer)
        >>> _ = nn.init.normal_(layer.weight, mean=1.0, std=0.2)
        >>> looks_pretrained(layer)
        'the weights of 1 of 1 normalisation layers are away from their initial values'
    """
    layers = [layer for layer in module.modules() if _is_trained_normalisation(layer)]
    moved_count = sum(any(_spread(param) > SPREAD for param in _values(layer)) for layer in layers)
    if moved_count * 2 > len(layers):
        return f"the weights of {moved_count} of {len(layers)} normalisation layers are away from their initial values"
    counts = [int(count) for layer in layers if (count := _batch_count(layer)) is not None]
    if any(counts):
        return f"its BatchNorm layers have counted {max(counts)} batches"
    return None


@torch.no_grad()
def trained_shares(
    members: Iterable[Member], repetition: Tensor | float = 0.0
) -> tuple[dict[str, float], Tensor | None]:
    """Degree of training of each parameter, 0 to 1, by name; and the number of matrices, ``None`` without parameters.

    See :func:`~lightning_lopt.rules.residual_parts.structure.trained`, also for ``repetition``. Complex, frozen and
    sharded parameters are left out. The function waits for the device.
    """
    readable = {m.name: (m.param.detach().float(), m.role) for m in members if _can_be_read(m.param)}
    if not readable:
        return {}, None
    signs_of_tensors = (signs_of(param, role) for param, role in readable.values())
    signs = Signs(*(torch.stack(values) for values in zip(*signs_of_tensors, strict=True)))
    return dict(zip(readable, trained(signs, repetition).tolist(), strict=True)), depth_of(signs)


def _can_be_read(param: Tensor) -> bool:
    return (
        param.requires_grad and param.is_floating_point() and not (param.is_meta or is_lazy(param) or is_shard(param))
    )


def _is_trained_normalisation(layer: nn.Module) -> bool:
    params = list(layer.parameters(recurse=False))
    return "norm" in type(layer).__name__.lower() and any(param.requires_grad for param in params)


def _values(layer: nn.Module) -> list[Tensor]:
    """Weight and bias by channel; of sharded parameters, the shard on this rank."""
    values = [getattr(param.detach(), "_local_tensor", param.detach()) for param in layer.parameters(recurse=False)]
    return [value for value in values if value.ndim == 1 and value.is_floating_point() and not value.is_meta]


def _batch_count(layer: nn.Module) -> Tensor | None:
    count = getattr(layer, "num_batches_tracked", None)
    return None if not isinstance(count, Tensor) or count.is_meta else count


def _spread(value: Tensor) -> float:
    return float(value.max() - value.min()) if value.numel() else 0.0
