"""Fast evaluation of the per-entry network: in blocks that fit the cache, without expanding outer features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.shared.entry_network import EntryNetwork, Weights, inverse_rms, matrix_norm
from lightning_lopt.rules.shared.features import EntryFeatures, Feature, computed_groups, split_rows

__all__ = ["EntryNetwork", "apply_network"]  # the names that rules use

BLOCK = 2**16  # number of entries whose features are in memory at a time, so that they fit the cache of a CPU
DEVICE_BLOCK = 2**22


def apply_network(weights: Weights, inputs: EntryFeatures, outer: Sequence[Tensor], eps: float) -> Tensor:
    """Outputs of the network for every entry of a tensor of shape s, (outputs, *s); ``outer`` are outer features.

    >>> from lightning_lopt.rules.shared.moment_features import MomentumFeatures
    >>> network, (grad, param, momentum) = EntryNetwork(inner=3, outer=0, hidden=8, outputs=2), torch.ones(3, 1, 7, 9)
    >>> apply_network(network.weights(torch.float32, 2), MomentumFeatures(grad, param, momentum), (), eps=1e-5).shape
    torch.Size([2, 7, 9])
    """
    shape = inputs.param.shape[1:]
    first_term, *outer_terms = _outer_layer(weights, outer, len(shape), eps)
    terms = [*_shifts(weights, first_term), *outer_terms]
    rows = _rows_at_a_time(inputs.param[0])
    if rows >= shape[0]:
        features = _gathered(inputs.features(), None)
        return _layers(weights, features, inverse_rms(matrix_norm(features, len(shape)), shape, eps), terms)
    # The features are computed twice, since storing all of them would take 4 (6 + 4 k) bytes per entry.
    parts = inputs.parts(rows)
    workspaces = {part.param.shape[1]: _workspace(part, weights) for part in (parts[0], parts[-1])}
    part_workspaces = [workspaces[part.param.shape[1]] for part in parts]
    norms = [
        torch.cat(
            [
                matrix_norm(x, len(shape))
                for x in computed_groups(part.features(), None if workspace is None else workspace.groups)
            ]
        )
        for part, workspace in zip(parts, part_workspaces, strict=True)
    ]
    scale = inverse_rms(torch.linalg.vector_norm(torch.stack(norms), dim=0), shape, eps)
    pieces = zip(*(split_rows(x, rows, shape[0]) for x in terms), strict=True)
    outputs = [
        _layers(weights, _gathered(part.features(), workspace), scale, x, workspace)
        for part, workspace, x in zip(parts, part_workspaces, pieces, strict=True)
    ]
    return torch.cat(outputs, 1)


class _Workspace(NamedTuple):
    """Memory for one block; all blocks of the same size reuse it, so that it stays in the cache.

    Attributes:
        features: all features, (F, *s).
        groups: views of ``features``, one for each group.
        leading_tensors: number of groups before the first product of two tensors.
        hidden: memory of the two hidden layers, (hidden, entries) each.
    """

    features: Tensor
    groups: Sequence[Tensor]
    leading_tensors: int
    hidden: Sequence[Tensor]


def _gathered(groups: Sequence[Feature], workspace: _Workspace | None) -> Tensor:
    """All features in one tensor, (F, *s)."""
    if workspace is None:
        return torch.cat(computed_groups(groups))
    count = workspace.leading_tensors
    torch.cat(computed_groups(groups[:count]), out=workspace.features[: sum(map(len, groups[:count]))])
    for group, output in zip(groups[count:], workspace.groups[count:], strict=True):
        if isinstance(group, Tensor):
            output.copy_(group)
        else:
            torch.mul(*group, out=output)
    return workspace.features


def _workspace(part: EntryFeatures, weights: Weights) -> _Workspace | None:
    """A workspace for blocks like ``part``; ``None`` under autograd and torch.func, where writing in place fails."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return None
    groups, like = part.features(), part.param
    sizes = [len(group) if isinstance(group, Tensor) else max(map(len, group)) for group in groups]
    are_tensors = [isinstance(group, Tensor) for group in groups]
    features = like.new_empty(sum(sizes), *like.shape[1:])
    hidden = like.new_empty(2, len(weights.weight_1), like.numel())
    return _Workspace(features, torch.split(features, sizes), (*are_tensors, False).index(False), hidden.unbind(0))


def _outer_layer(weights: Weights, outer: Sequence[Tensor], ndim: int, eps: float) -> list[Tensor]:
    """Terms of outer features and bias in the first layer, (hidden, *s) with size 1 along axes of constant values."""
    terms: list[Tensor] = []
    for index, features in enumerate(outer):
        assert weights.outer_0 is not None
        weight = weights.outer_0[:, index * len(features) : (index + 1) * len(features)]
        x = _weighted_sum(weight, features, inverse_rms(matrix_norm(features, ndim), features.shape[1:], eps))
        terms.append((x if terms else x + weights.bias_0).reshape(-1, *features.shape[1:]))
    return terms or [weights.bias_0.reshape(-1, *[1] * ndim)]


def _shifts(weights: Weights, bias: Tensor) -> list[Tensor]:
    r"""Terms that move a bias of the first layer through the network, without expanding the bias to all entries.

    Since :math:`\mathrm{relu}(x + b) = \max(x, -b) + b`, a layer computes the maximum of x and -b, and b is added in
    the next layer.

    Args:
        bias: bias b of the first layer, (hidden, *s) with size 1 along axes on which it is constant.

    Returns:
        -b of the two hidden layers, and the term of the outputs; each has the sizes of ``bias`` after its first axis.
    """
    size = bias.shape[1:]
    hidden_bias = weights.weight_1 @ bias.flatten(1) + weights.bias_1
    output_term = weights.weight_2 @ hidden_bias + weights.bias_2
    return [-bias, -hidden_bias.reshape(-1, *size), output_term.reshape(-1, *size)]


def _layers(
    weights: Weights, features: Tensor, scale: Tensor, terms: Sequence[Tensor], workspace: _Workspace | None = None
) -> Tensor:
    """Outputs (o, *s) from inner features (F, *s), their scale, and further terms.

    ``terms`` are the terms of :func:`_shifts`, and further terms of the first layer.
    """
    shape, (floor_1, floor_2, output_term, *outer_terms) = features.shape[1:], terms
    hidden = (None, None) if workspace is None else workspace.hidden
    x = _weighted_sum(weights.inner_0[:, : len(features)], features, scale, hidden[0]).reshape(-1, *shape)
    for term in outer_terms:
        x = x.add_(term)
    x = torch.mm(weights.weight_1, _maximum(x, floor_1, workspace).flatten(1), out=hidden[1]).reshape(-1, *shape)
    x = torch.mm(weights.weight_2, _maximum(x, floor_2, workspace).flatten(1)).reshape(-1, *shape)
    return x.add_(output_term)


def _maximum(x: Tensor, floor: Tensor, workspace: _Workspace | None) -> Tensor:
    """The maximum of ``x`` and ``floor``, written to ``x`` if there is a workspace."""
    return torch.maximum(x, floor) if workspace is None else torch.maximum(x, floor, out=x)


def _weighted_sum(weight: Tensor, features: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """``weight`` (h, F) times ``features`` (F, *s) scaled by ``scale``, (F, *leading axes, 1, 1): (h, entries)."""
    if scale.numel() == len(scale):
        weight = weight * scale.reshape(1, -1)
    else:  # matrices with leading axes, each with its own scale
        features = features * scale
    return torch.mm(weight, features.flatten(1), out=out)


def _rows_at_a_time(x: Tensor) -> int:
    """Number of rows (entries of the first axis of a tensor of rank 1 or 2) in a block.

    A tensor that is small or has leading axes is one block; in a compiled step every tensor is, since a compiler fuses
    the operations.
    """
    if x.ndim > 2 or torch.compiler.is_compiling():
        return len(x)
    block = BLOCK if x.device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // math.prod(x.shape[1:])) if x.numel() > 2 * block else len(x)
