r"""The inputs of the per-entry networks of AdafacMLP, VeLO, Celo and Celo2.

With k decays there are 6 + 8 k features (k = 3: 30), in the order of the reference:

======================  ====  =================================================================================
g                       1     gradient, clipped to ±1000 beforehand
clip(g, ±0.1)           1
p                       1     parameter
m                       k     momenta
v                       1     second moment
m / √(v + ε)            k     ε = 1e-8 for Celo2, 1e-6 for the others
1 / √(v + ε)            1
g R L                   k     gradient over its factored root mean square, :mod:`~lightning_lopt.rules.shared.moments`
g / √(v + ε)            1
rows, columns           k, k  the factored second moment itself
1 / √(rows + 1e-8)      k
1 / √(columns + 1e-8)   k
m R L                   k
======================  ====  =================================================================================

AdafacMLP has neither clip(g, ±0.1) nor g / √(v + ε). A tensor of rank < 2 has no factored second moment, and its R L is
that of :func:`~lightning_lopt.rules.shared.moments.diagonal_factor`. For Celo2, the features of such a tensor end
before the rows. For the other rules, the averages q of the square replace both rows and columns, and the last feature
is m / √(q + ε'), with ε' = 1e-6 for AdafacMLP and ε' = 0 for VeLO and Celo.

The features are the first axis, so that the long axis of entries is contiguous. Features that vary only by row or only
by column are never expanded to all entries: they are the *outer* features; all others are the *inner* features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_lopt.rules.shared.moments import Ties, diagonal_factor, factored_axes, factors

OUTER_EPS = 1e-8
CLIP = 0.1


Feature = Tensor | tuple[Tensor, Tensor]  # a group of features, or two tensors whose product is the group


class EntryFeatures(Protocol):
    """Groups of features (f, *s) of a tensor of shape s, the inputs of a network."""

    @property
    def param(self) -> Tensor:
        """The tensor, (1, *s)."""

    def features(self) -> list[Feature]:
        """The groups of features, computed at each call."""

    def parts(self, rows: int) -> Sequence[EntryFeatures]:
        """The features of blocks of ``rows`` entries along the first axis of the tensor."""


def computed_groups(groups: Sequence[Feature], product_memory: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The groups of features as tensors; products are written to ``product_memory``, unless it is ``None``."""
    outputs: Sequence[Tensor | None] = [None] * len(groups) if product_memory is None else product_memory
    return [
        x if isinstance(x, Tensor) else torch.mul(*x, out=output) for x, output in zip(groups, outputs, strict=True)
    ]


class FeatureInputs(NamedTuple):
    """Inputs of the inner features of one tensor of shape s, rank >= 1; each input has an additional first axis.

    Attributes:
        param: (1, *s).
        grad: (1, *s).
        second_moment: (1, *s).
        root: 1 / √(v + 1e-8), (1, *s).
        momentum: (k, *s).
        factors: R and L, whose product is broadcastable to (k, *s); only the diagonal factor for rank < 2.
        momentum_factors: R and L of the feature m R L, if they differ from ``factors``; otherwise empty. For rank < 2,
            this is the factor of the last feature, or empty if there is no such feature.
        gradient_forms: whether clip(g) and g / √v are among the features.
    """

    param: Tensor
    grad: Tensor
    second_moment: Tensor
    root: Tensor
    momentum: Tensor
    factors: tuple[Tensor, ...]
    momentum_factors: tuple[Tensor, ...] = ()
    gradient_forms: bool = True

    def features(self) -> list[Feature]:
        """Groups (f, *s) of inner features, in order, m R L last."""
        grad, momentum, root = self.grad, self.momentum, self.root
        factor = _product(self.factors)
        groups: list[Feature] = [grad, grad.clamp(-CLIP, CLIP)] if self.gradient_forms else [grad]
        groups += [self.param, momentum, self.second_moment, (momentum, root), root, (grad, factor)]
        if self.gradient_forms:
            groups.append((grad, root))
        if grad.ndim > 2 or self.momentum_factors:
            groups.append((momentum, _product(self.momentum_factors) if self.momentum_factors else factor))
        return groups

    def parts(self, rows: int) -> list[FeatureInputs]:
        total = self.param.shape[1]
        split_tensors = [split_rows(x, rows, total) for x in (*self[:5], *self.factors, *self.momentum_factors)]
        end = len(self.factors)
        parts = []
        for param, grad, second_moment, root, momentum, *factor_parts in zip(*split_tensors, strict=True):
            groups = tuple(factor_parts[:end]), tuple(factor_parts[end:])
            parts.append(FeatureInputs(param, grad, second_moment, root, momentum, *groups, self.gradient_forms))
        return parts


def averaged_features(
    param: Tensor,
    grad: Tensor,
    averages: Mapping[str, Tensor],
    ties: Ties,
    *,
    eps: float,
    diagonal_eps: float | None,
    gradient_forms: bool = True,
    corrected: Mapping[str, Tensor] | None = None,
) -> tuple[FeatureInputs, list[Tensor]]:
    """Inputs of the inner features of a tensor of rank >= 1, and its outer features.

    Args:
        param: the parameter, shape s.
        grad: its gradient, shape s.
        averages: result of :func:`~lightning_lopt.rules.shared.moments.update_averages` for this gradient.
        ties: which of two equal axes is treated as the larger axis.
        eps: ε.
        diagonal_eps: ε'; ``None`` ends the features of rank < 2 before the rows, as in Celo2.
        gradient_forms: whether clip(g) and g / √v are among the features.
        corrected: bias-corrected averages for all features except g R L; ``None`` if these are ``averages``.
    """
    feature_averages = averages if corrected is None else corrected
    momentum, second_moment = feature_averages["momentum"], feature_averages["second_moment"]
    inputs = param[None], grad[None], second_moment[None], (second_moment + eps).rsqrt_()[None], momentum
    if param.ndim < 2:
        diagonal = averages["diagonal"]
        if diagonal_eps is None:
            return FeatureInputs(*inputs, (diagonal_factor(diagonal),), (), gradient_forms), []
        # If m is 0, the feature is 0; q is then replaced by 1, so that the derivative of the root is finite.
        last_factor = torch.rsqrt(torch.where(momentum == 0, 1.0, diagonal) + diagonal_eps)
        inner_inputs = FeatureInputs(*inputs, (diagonal_factor(diagonal),), (last_factor,), gradient_forms)
        return inner_inputs, outer_features(diagonal, diagonal)
    axes = factored_axes(param.shape, ties)
    gradient_factors = factors(averages["rows"], averages["columns"], axes)
    momentum_factors = () if corrected is None else factors(feature_averages["rows"], feature_averages["columns"], axes)
    inner_inputs = FeatureInputs(*inputs, gradient_factors, momentum_factors, gradient_forms)
    return inner_inputs, outer_features(feature_averages["rows"], feature_averages["columns"])


def spread(inputs: FeatureInputs, outer: Sequence[Tensor]) -> tuple[FeatureInputs, list[Tensor]]:
    """The entries of a tensor of rank >= 3 as a tensor of rank 1, which has one scale and not one for each matrix."""
    size = inputs.param.shape[1:]
    if len(size) < 3:
        return inputs, list(outer)
    factor = _spread(_product(inputs.factors), size)
    param, grad, second_moment, root, momentum = (x.flatten(1) for x in inputs[:5])
    flat = FeatureInputs(param, grad, second_moment, root, momentum, (factor,), (factor,), inputs.gradient_forms)
    return flat, [_spread(group, size) for group in outer]


def _spread(x: Tensor, size: torch.Size) -> Tensor:
    return x.expand(-1, *size).flatten(1)


def split_rows(x: Tensor, rows: int, total: int) -> Sequence[Tensor]:
    """``x`` of shape (f, total, ...) in pieces of ``rows``; ``x`` of shape (f, 1, ...) is repeated for each piece."""
    return [x] * -(-total // rows) if x.shape[1] == 1 else torch.split(x, rows, 1)


def outer_features(rows: Tensor, columns: Tensor) -> list[Tensor]:
    """Rows and their inverse roots, (2 k, *s) with size 1 along the axis of the mean, and the same for the columns."""
    return [torch.cat([group, torch.rsqrt(group + OUTER_EPS)]) for group in (rows, columns)]


def _product(factors: tuple[Tensor, ...]) -> Tensor:
    return factors[0] * factors[1] if len(factors) > 1 else factors[0]
