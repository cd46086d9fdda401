"""The network of Celo2: three small layers applied to every entry of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lopt.rules.features import FeatureInputs, split_rows

NORM_EPS = 1e-9
BLOCK = 2**15  # entries whose features are in memory at a time: on a CPU they stay in its cache
DEVICE_BLOCK = 2**22


def matrix_norm(x: Tensor, ndim: int) -> Tensor:
    """Euclidean norm of each matrix, the last two axes of a tensor of rank ``ndim`` (the last for rank 1); kept as 1.

    ``x`` may have further axes in front.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(-min(ndim, 2), 0)), keepdim=True)
    return norm


def inverse_rms(norm: Tensor, shape: torch.Size) -> Tensor:
    r""":math:`1 / \sqrt{\mathrm{mean}(x^2) + 10^{-9}}` from the :func:`matrix_norm` of x; ``shape`` that of x."""
    entries = math.prod(shape[-2:])
    return norm.square().add_(entries * NORM_EPS).rsqrt_() * math.sqrt(entries)


class Weights(NamedTuple):
    """θ of an :class:`EntryNetwork` in the type to compute in."""

    inner_0: Tensor
    outer_0: Tensor
    bias_0: Tensor
    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor
    bias_2: Tensor


class EntryNetwork(nn.Module):
    r"""A perceptron of two hidden layers with ReLU; its inputs are the features of one entry, normalised.

    .. math:: o = W_2\, \mathrm{relu}(W_1\, \mathrm{relu}(W_0 x + b_0) + b_1) + b_2, \qquad
        x_i = f_i \,\big/ \sqrt{\mathrm{mean}(f_i^2) + 10^{-9}}

    The mean is over the matrix that the tensor is, each for itself where there are leading axes. The normaliser
    multiplies the weights instead of the features, and outer features pass the first layer before they are spread.

    Args:
        decays: number of decays k, which gives 6 + 8 k inputs.
        hidden: width of both hidden layers.

    Attributes:
        inner_0: first layer for the inner features in their order, (hidden, 6 + 4 k).
        outer_0: first layer for rows, their inverse roots, columns, and their inverse roots, (hidden, 4 k).
        weight_1: (hidden, hidden).
        weight_2: (3, hidden), for direction, magnitude, and an output that nothing reads.
        bias_0, bias_1, bias_2: (hidden), (hidden), (3).
    """

    def __init__(self, decays: int, hidden: int) -> None:
        super().__init__()
        inputs = 6 + 8 * decays
        self.inner_0 = _weight(hidden, 6 + 4 * decays, inputs)
        self.outer_0 = _weight(hidden, 4 * decays, inputs)
        self.bias_0 = nn.Parameter(torch.zeros(hidden))
        self.weight_1 = _weight(hidden, hidden, hidden)
        self.bias_1 = nn.Parameter(torch.zeros(hidden))
        self.weight_2 = _weight(3, hidden, hidden)
        self.bias_2 = nn.Parameter(torch.zeros(3))

    def weights(self, dtype: torch.dtype, outputs: int) -> Weights:
        """θ in another type, with the first ``outputs`` of the three outputs; biases as columns."""
        inner_0, outer_0, weight_1 = (x.to(dtype) for x in (self.inner_0, self.outer_0, self.weight_1))
        bias_0, bias_1, bias_2 = (x.to(dtype)[:, None] for x in (self.bias_0, self.bias_1, self.bias_2[:outputs]))
        return Weights(inner_0, outer_0, bias_0, weight_1, bias_1, self.weight_2[:outputs].to(dtype), bias_2)


def apply_network(weights: Weights, inputs: FeatureInputs, outer: Sequence[Tensor]) -> Tensor:
    """The network's outputs for every entry of a tensor of shape s, (outputs, *s); ``outer`` are outer features."""
    shape = inputs.param.shape[1:]
    beside = _outer_layer(weights, outer, len(shape))
    rows = _rows_at_a_time(inputs.param[0])
    if rows >= shape[0]:
        features = torch.cat(inputs.features())
        return _layers(weights, features, inverse_rms(matrix_norm(features, len(shape)), shape), beside)
    # The features are made twice: kept, they would take 4 (6 + 4 k) bytes per entry.
    parts = inputs.parts(rows)
    norms = [torch.cat([matrix_norm(group, len(shape)) for group in part.features()]) for part in parts]
    scale = inverse_rms(torch.linalg.vector_norm(torch.stack(norms), dim=0), shape)
    pieces = zip(*(split_rows(x, rows, shape[0]) for x in beside), strict=True)
    done = [_layers(weights, torch.cat(part.features()), scale, x) for part, x in zip(parts, pieces, strict=True)]
    return torch.cat(done, 1)


def _outer_layer(weights: Weights, outer: Sequence[Tensor], ndim: int) -> list[Tensor]:
    """What outer features and bias add in the first layer, each (hidden, *s) with size 1 where it is constant."""
    added: list[Tensor] = []
    for index, features in enumerate(outer):
        weight = weights.outer_0[:, index * len(features) : (index + 1) * len(features)]
        x = _weighted_sum(weight, features, inverse_rms(matrix_norm(features, ndim), features.shape[1:]))
        added.append((x if added else x + weights.bias_0).reshape(-1, *features.shape[1:]))
    return added or [weights.bias_0]


def _layers(weights: Weights, features: Tensor, scale: Tensor, beside: Sequence[Tensor]) -> Tensor:
    """Outputs (o, *s) from inner features (F, *s), what to multiply them with, and what is added beside them."""
    shape = features.shape[1:]
    x = _weighted_sum(weights.inner_0[:, : len(features)], features, scale).reshape(-1, *shape)
    for added in beside:
        x = x.add_(added)
    x = x.relu_().flatten(1)
    x = (weights.weight_1 @ x).add_(weights.bias_1).relu_()
    return (weights.weight_2 @ x).add_(weights.bias_2).reshape(-1, *shape)


def _weighted_sum(weight: Tensor, features: Tensor, scale: Tensor) -> Tensor:
    """``weight`` (h, F) times ``features`` (F, *s) scaled by ``scale``, (F, *leading axes, 1, 1): (h, entries)."""
    if scale.numel() == len(scale):
        weight = weight * scale.reshape(1, -1)
    else:  # matrices with leading axes, each with its own scale
        features = features * scale
    return weight @ features.flatten(1)


def _weight(outputs: int, inputs: int, fan_in: int) -> nn.Parameter:
    """Normal with standard deviation 1/√fan_in, cut at two of them."""
    cut_at = 2 * fan_in**-0.5
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(outputs, inputs), 0.0, cut_at / 2, -cut_at, cut_at))


def _rows_at_a_time(x: Tensor) -> int:
    """Entries along the first axis of a tensor of rank 1 or 2 that make up a block.

    All of them for a tensor that is small, has leading axes, or is compiled (the compiler fuses what blocks keep in
    the cache).
    """
    if x.ndim > 2 or torch.compiler.is_compiling():
        return len(x)
    block = BLOCK if x.device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // math.prod(x.shape[1:])) if x.numel() > 2 * block else len(x)
