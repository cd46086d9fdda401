r"""What the per-entry network of Celo2 sees of a tensor.

With k decays there are 6 + 8 k features for rank >= 2, in this order (k = 3: 30):

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
    """What the features of one tensor of shape s are made of; rank >= 1.

    Attributes:
        param: shape s.
        grad: shape s.
        second_moment: shape s.
        momentum: shape (k, *s).
        factors: R and L, whose product is broadcastable to (k, *s); the diagonal factor alone for rank < 2.
        momentum_factors: R and L for the momenta; nothing for rank < 2.
        outer: rows and columns, (k, *s) with size 1 along the axis in which they are constant; nothing for rank < 2.
    """

    param: Tensor
    grad: Tensor
    second_moment: Tensor
    momentum: Tensor
    factors: tuple[Tensor, ...]
    momentum_factors: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]

    def part(self, start: int, length: int) -> FeatureInputs:
        """The same of ``param[start : start + length]``."""

        def part(*group: Tensor) -> tuple[Tensor, ...]:
            return tuple(cut(x, self.param.ndim, start, length) for x in group)

        param, grad, second_moment, momentum = part(*self[:4])
        groups = part(*self.factors), part(*self.momentum_factors), part(*self.outer)
        return FeatureInputs(param, grad, second_moment, momentum, *groups)

    def inner_features(self) -> Tensor:
        """Shape (F, *s): 6 + 3 k of them, and m R L behind these for rank >= 2."""
        grad, momentum = self.grad, self.momentum
        root = torch.rsqrt(self.second_moment + SECOND_MOMENT_EPS)
        alone = torch.stack([grad, grad.clamp(-CLIP, CLIP), self.param])
        features = [alone, momentum, self.second_moment[None], momentum * root, root[None]]
        features += [grad * _product(self.factors), (grad * root)[None]]
        if self.momentum_factors:
            features.append(momentum * _product(self.momentum_factors))
        return torch.cat(features)

    def outer_features(self) -> tuple[Tensor, ...]:
        """Groups of k features: rows, columns and their inverse roots; shapes as those of ``outer``."""
        return self.outer + tuple(torch.rsqrt(group + SECOND_MOMENT_EPS) for group in self.outer)


def _product(factors: tuple[Tensor, ...]) -> Tensor:
    return factors[0] * factors[1] if len(factors) > 1 else factors[0]
