"""The network of the per-entry rules: three small layers applied to every entry of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE
from lightning_lopt.rules.features import EntryFeatures, Feature, made, split_rows

BLOCK = 2**16  # entries whose features are in memory at a time: on a CPU they stay in its cache
DEVICE_BLOCK = 2**22


def matrix_norm(x: Tensor, ndim: int) -> Tensor:
    """Euclidean norm of each matrix, the last two axes of a tensor of rank ``ndim`` (the last for rank 1); kept as 1.

    ``x`` may have further axes in front.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(-min(ndim, 2), 0)), keepdim=True)
    return norm


def inverse_rms(norm: Tensor, shape: torch.Size, eps: float) -> Tensor:
    r""":math:`1 / \sqrt{\mathrm{mean}(x^2) + \epsilon}` from the :func:`matrix_norm` of x; ``shape`` that of x."""
    entries = math.prod(shape[-2:])
    return norm.square().add_(entries * eps).rsqrt_() * math.sqrt(entries)


class Weights(NamedTuple):
    """θ of an :class:`EntryNetwork` in the type to compute in."""

    inner_0: Tensor
    outer_0: Tensor | None
    bias_0: Tensor
    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor
    bias_2: Tensor

    def to(self, dtype: torch.dtype) -> Weights:
        """The same in another type."""
        return Weights(*(None if x is None else x.to(dtype) for x in self))  # type: ignore[arg-type]


class EntryNetwork(nn.Module):
    r"""A perceptron of two hidden layers with ReLU; its inputs are the features of one entry, normalised.

    .. math:: o = W_2\, \mathrm{relu}(W_1\, \mathrm{relu}(W_0 x + b_0) + b_1) + b_2, \qquad
        x_i = f_i \,\big/ \sqrt{\mathrm{mean}(f_i^2) + \epsilon}

    The mean is over the matrix that the tensor is, each for itself where there are leading axes. The normaliser
    multiplies the weights instead of the features; outer features pass the first layer before they are spread, and
    constants, the same number for every entry of a tensor, which are not normalised, are added to the bias.

    Args:
        inner: number of inner features.
        outer: number of outer features, a multiple of 4, or 0.
        constant: number of constants.
        hidden: width of both hidden layers.
        outputs: number of outputs.
        copies: number K of networks side by side, all parameters with this first axis; ``None`` for a single one.

    Attributes:
        inner_0: first layer for the inner features in their order, (hidden, inner).
        outer_0: first layer for rows, their inverse roots, columns, and their inverse roots, (hidden, outer).
        constant_0: first layer for the constants, (hidden, constant).
        weight_1: (hidden, hidden).
        weight_2: (outputs, hidden), in most rules for direction, magnitude, and an output that nothing reads.
        bias_0, bias_1, bias_2: (hidden), (hidden), (outputs).
    """

    def __init__(
        self, inner: int, outer: int, hidden: int, outputs: int = 3, constant: int = 0, copies: int | None = None
    ) -> None:
        super().__init__()
        inputs, lead = inner + outer + constant, () if copies is None else (copies,)
        self.inner_0 = initial_weight(*lead, hidden, inner, fan_in=inputs)
        self.outer_0 = initial_weight(*lead, hidden, outer, fan_in=inputs) if outer else None
        self.constant_0 = initial_weight(*lead, hidden, constant, fan_in=inputs) if constant else None
        self.bias_0 = nn.Parameter(torch.zeros(*lead, hidden, dtype=THETA_DTYPE))
        self.weight_1 = initial_weight(*lead, hidden, hidden, fan_in=hidden)
        self.bias_1 = nn.Parameter(torch.zeros(*lead, hidden, dtype=THETA_DTYPE))
        self.weight_2 = initial_weight(*lead, outputs, hidden, fan_in=hidden)
        self.bias_2 = nn.Parameter(torch.zeros(*lead, outputs, dtype=THETA_DTYPE))

    def weights(self, dtype: torch.dtype, outputs: int, constants: Tensor | None = None) -> Weights:
        """θ in another type, with the first ``outputs`` outputs, for the constants (constant,) of a tensor.

        Biases are columns.
        """
        inner_0, weight_1, weight_2 = (x.to(dtype) for x in (self.inner_0, self.weight_1, self.weight_2[:outputs]))
        outer_0 = None if self.outer_0 is None else self.outer_0.to(dtype)
        bias_0, bias_1, bias_2 = (x.to(dtype)[:, None] for x in (self.bias_0, self.bias_1, self.bias_2[:outputs]))
        if self.constant_0 is not None:
            assert constants is not None
            bias_0 = bias_0 + self.constant_0.to(dtype) @ constants.to(dtype)[:, None]
        return Weights(inner_0, outer_0, bias_0, weight_1, bias_1, weight_2, bias_2)

    def mixtures(self, shares: Tensor, outputs: int) -> dict[str, Tensor]:
        """The weighted means of the K copies, without constants: one network for each of n rows of ``shares``.

        Args:
            shares: weight of each copy, (n, K), divided by K here.
            outputs: number of outputs to keep.

        Returns:
            the fields of :class:`Weights`, with an axis n in front.
        """
        shares = shares / shares.shape[-1]
        banks = {
            "inner_0": self.inner_0,
            "bias_0": self.bias_0[..., None],
            "weight_1": self.weight_1,
            "bias_1": self.bias_1[..., None],
            "weight_2": self.weight_2[:, :outputs],
            "bias_2": self.bias_2[:, :outputs, None],
        }
        if self.outer_0 is not None:
            banks["outer_0"] = self.outer_0
        return {name: (shares @ bank.flatten(1)).reshape(-1, *bank.shape[1:]) for name, bank in banks.items()}


def apply_network(weights: Weights, inputs: EntryFeatures, outer: Sequence[Tensor], eps: float) -> Tensor:
    """The network's outputs for every entry of a tensor of shape s, (outputs, *s); ``outer`` are outer features."""
    shape = inputs.param.shape[1:]
    first, *others = _outer_layer(weights, outer, len(shape), eps)
    beside = [*_shifts(weights, first), *others]
    rows = _rows_at_a_time(inputs.param[0])
    if rows >= shape[0]:
        features = _gathered(inputs.features(), None)
        return _layers(weights, features, inverse_rms(matrix_norm(features, len(shape)), shape, eps), beside)
    # The features are made twice: kept, they would take 4 (6 + 4 k) bytes per entry.
    parts = inputs.parts(rows)
    desks = {part.param.shape[1]: _desk(part, weights) for part in (parts[0], parts[-1])}
    desk_of = [desks[part.param.shape[1]] for part in parts]
    norms = [
        torch.cat([matrix_norm(x, len(shape)) for x in made(part.features(), None if desk is None else desk.groups)])
        for part, desk in zip(parts, desk_of, strict=True)
    ]
    scale = inverse_rms(torch.linalg.vector_norm(torch.stack(norms), dim=0), shape, eps)
    pieces = zip(*(split_rows(x, rows, shape[0]) for x in beside), strict=True)
    done = [
        _layers(weights, _gathered(part.features(), desk), scale, x, desk)
        for part, desk, x in zip(parts, desk_of, pieces, strict=True)
    ]
    return torch.cat(done, 1)


class _Desk(NamedTuple):
    """Where blocks of one size are worked on, one after the other: memory that is in the cache already.

    Attributes:
        features: (F, *s).
        groups: the same by groups.
        plain: how many groups come before the first product.
        hidden: two layers, (hidden, entries) each.
    """

    features: Tensor
    groups: Sequence[Tensor]
    plain: int
    hidden: Sequence[Tensor]


def _gathered(groups: Sequence[Feature], desk: _Desk | None) -> Tensor:
    """All features, (F, *s)."""
    if desk is None:
        return torch.cat(made(groups))
    first = groups[: desk.plain]
    torch.cat(made(first), out=desk.features[: sum(map(len, first))])
    for group, place in zip(groups[desk.plain :], desk.groups[desk.plain :], strict=True):
        if isinstance(group, Tensor):
            place.copy_(group)
        else:
            torch.mul(*group, out=place)
    return desk.features


def _desk(part: EntryFeatures, weights: Weights) -> _Desk | None:
    """For blocks like ``part``; ``None`` where gradients are recorded or functions transformed, which forbid it."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return None
    groups, like = part.features(), part.param
    sizes = [len(group) if isinstance(group, Tensor) else max(map(len, group)) for group in groups]
    plain = [isinstance(group, Tensor) for group in groups]
    features = like.new_empty(sum(sizes), *like.shape[1:])
    hidden = like.new_empty(2, len(weights.weight_1), like.numel())
    return _Desk(features, torch.split(features, sizes), (*plain, False).index(False), hidden.unbind(0))


def _outer_layer(weights: Weights, outer: Sequence[Tensor], ndim: int, eps: float) -> list[Tensor]:
    """What outer features and bias add in the first layer, each (hidden, *s) with size 1 where it is constant."""
    added: list[Tensor] = []
    for index, features in enumerate(outer):
        assert weights.outer_0 is not None
        weight = weights.outer_0[:, index * len(features) : (index + 1) * len(features)]
        x = _weighted_sum(weight, features, inverse_rms(matrix_norm(features, ndim), features.shape[1:], eps))
        added.append((x if added else x + weights.bias_0).reshape(-1, *features.shape[1:]))
    return added or [weights.bias_0.reshape(-1, *[1] * ndim)]


def _shifts(weights: Weights, first: Tensor) -> list[Tensor]:
    r"""How what is added beside the first layer, e.g. a bias, passes the network without being spread over the tensor.

    As :math:`\mathrm{relu}(x + b) = \max(x, -b) + b`, a layer takes the larger of x and -b, and b goes to the next one.

    Args:
        first: b of the first layer, (hidden, *s) with size 1 where it is constant.

    Returns:
        -b of the two hidden layers, and what is added to the outputs, of sizes like those of ``first``.
    """
    size = first.shape[1:]
    second = weights.weight_1 @ first.flatten(1) + weights.bias_1
    last = weights.weight_2 @ second + weights.bias_2
    return [-first, -second.reshape(-1, *size), last.reshape(-1, *size)]


def _layers(
    weights: Weights, features: Tensor, scale: Tensor, beside: Sequence[Tensor], desk: _Desk | None = None
) -> Tensor:
    """Outputs (o, *s) from inner features (F, *s), what to multiply them with, and what goes beside them.

    That is :func:`_shifts`, and what else is added in the first layer.
    """
    shape, (floor_1, floor_2, last, *others) = features.shape[1:], beside
    hidden = (None, None) if desk is None else desk.hidden
    x = _weighted_sum(weights.inner_0[:, : len(features)], features, scale, hidden[0]).reshape(-1, *shape)
    for added in others:
        x = x.add_(added)
    x = torch.mm(weights.weight_1, _raised(x, floor_1, desk).flatten(1), out=hidden[1]).reshape(-1, *shape)
    x = torch.mm(weights.weight_2, _raised(x, floor_2, desk).flatten(1)).reshape(-1, *shape)
    return x.add_(last)


def _raised(x: Tensor, floor: Tensor, desk: _Desk | None) -> Tensor:
    """The larger of the two, in place of ``x`` where there is a desk."""
    return torch.maximum(x, floor) if desk is None else torch.maximum(x, floor, out=x)


def _weighted_sum(weight: Tensor, features: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """``weight`` (h, F) times ``features`` (F, *s) scaled by ``scale``, (F, *leading axes, 1, 1): (h, entries)."""
    if scale.numel() == len(scale):
        weight = weight * scale.reshape(1, -1)
    else:  # matrices with leading axes, each with its own scale
        features = features * scale
    return torch.mm(weight, features.flatten(1), out=out)


def initial_weight(*shape: int, fan_in: int) -> nn.Parameter:
    """Normal with standard deviation 1/√fan_in, cut at two of them."""
    cut_at = 2 * fan_in**-0.5
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape, dtype=THETA_DTYPE), 0.0, cut_at / 2, -cut_at, cut_at))


def _rows_at_a_time(x: Tensor) -> int:
    """Entries along the first axis of a tensor of rank 1 or 2 that make up a block.

    All of them for a tensor that is small, has leading axes, or is compiled (the compiler fuses what blocks keep in
    the cache).
    """
    if x.ndim > 2 or torch.compiler.is_compiling():
        return len(x)
    block = BLOCK if x.device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // math.prod(x.shape[1:])) if x.numel() > 2 * block else len(x)
