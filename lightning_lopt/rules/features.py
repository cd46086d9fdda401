r"""What the per-entry network of Celo2 sees of a tensor.

With k decays there are 6 + 8 k features for rank >= 2 (k = 3: 30), in the order of the reference:

======================  ====  =================================================================================
g                       1     gradient, clipped to ±1000 beforehand
clip(g, ±0.1)           1
p                       1     parameter
m                       k     momenta
v                       1     second moment
m / √(v + 1e-8)         k
1 / √(v + 1e-8)         1
g R L                   k     gradient over its factored root mean square, :mod:`~lightning_lopt.rules.factored`
g / √(v + 1e-8)         1
rows, columns           k, k  the factored second moment itself
1 / √(rows + 1e-8)      k
1 / √(columns + 1e-8)   k
m R L                   k
======================  ====  =================================================================================

Rank < 2 has no factored second moment: its features end before the rows, and R L is that of
:func:`~lightning_lopt.rules.factored.diagonal_factor`.

Features stand on the first axis, so that the long axis of entries is contiguous. Those that vary by row or by column
alone are never spread over the tensor: they are the *outer* features, the others the *inner* ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SECOND_MOMENT_EPS = 1e-8
CLIP = 0.1


def cut(x: Tensor, ndim: int, start: int, length: int) -> Tensor:
    """Entries ``start`` to ``start + length`` along the first of the last ``ndim`` axes, or all where there is one."""
    axis = x.ndim - ndim
    return x if x.shape[axis] == 1 else x.narrow(axis, start, length)


class FeatureInputs(NamedTuple):
    """What the inner features of one tensor of shape s, rank >= 1, are made of, each with one more axis in front.

    Attributes:
        param: (1, *s).
        grad: (1, *s).
        second_moment: (1, *s).
        root: 1 / √(v + 1e-8), (1, *s).
        momentum: (k, *s).
        factors: R and L, whose product is broadcastable to (k, *s); the diagonal factor alone for rank < 2.
        momentum_factors: R and L of the feature m R L if they are others; else empty.
    """

    param: Tensor
    grad: Tensor
    second_moment: Tensor
    root: Tensor
    momentum: Tensor
    factors: tuple[Tensor, ...]
    momentum_factors: tuple[Tensor, ...] = ()

    def features(self) -> list[Tensor]:
        """Groups (f, *s) of inner features, in order: 6 + 3 k of them, and m R L behind these for rank >= 2."""
        grad, momentum, root = self.grad, self.momentum, self.root
        factor = _product(self.factors)
        groups = [grad, grad.clamp(-CLIP, CLIP), self.param, momentum, self.second_moment, momentum * root, root]
        groups += [grad * factor, grad * root]
        if grad.ndim > 2:
            groups.append(momentum * (_product(self.momentum_factors) if self.momentum_factors else factor))
        return groups

    def parts(self, rows: int) -> list[FeatureInputs]:
        """The same for ``rows`` entries at a time along the first axis of the tensor."""
        total = self.param.shape[1]
        several = [split_rows(x, rows, total) for x in (*self[:5], *self.factors, *self.momentum_factors)]
        end = len(self.factors)
        parts = []
        for param, grad, second_moment, root, momentum, *others in zip(*several, strict=True):
            groups = tuple(others[:end]), tuple(others[end:])
            parts.append(FeatureInputs(param, grad, second_moment, root, momentum, *groups))
        return parts


def split_rows(x: Tensor, rows: int, total: int) -> Sequence[Tensor]:
    """``x`` of shape (f, total, ...) in pieces of ``rows``; (f, 1, ...), which is constant there, once for each."""
    return [x] * -(-total // rows) if x.shape[1] == 1 else torch.split(x, rows, 1)


def outer_features(rows: Tensor, columns: Tensor) -> list[Tensor]:
    """Rows and their inverse roots, (2 k, *s) with size 1 where they are constant, and the same of the columns."""
    return [torch.cat([group, torch.rsqrt(group + SECOND_MOMENT_EPS)]) for group in (rows, columns)]


def _product(factors: tuple[Tensor, ...]) -> Tensor:
    return factors[0] * factors[1] if len(factors) > 1 else factors[0]
