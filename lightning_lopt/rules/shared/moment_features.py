"""Features of the entries of a tensor from its running averages at several decays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.shared.features import Feature, split_rows

SECOND_MOMENT_EPS = 1e-6


class MomentumFeatures(NamedTuple):
    """Gradient, parameter and momenta, the :class:`EntryFeatures` of MLPLOpt for a tensor of shape s.

    Attributes:
        grad: (1, *s).
        param: (1, *s).
        momentum: (k, *s).
    """

    grad: Tensor
    param: Tensor
    momentum: Tensor

    def features(self) -> list[Feature]:
        return list(self)

    def parts(self, rows: int) -> list[MomentumFeatures]:
        pieces = (split_rows(x, rows, self.param.shape[1]) for x in self)
        return [MomentumFeatures(*piece) for piece in zip(*pieces, strict=True)]


class MomentFeatures(NamedTuple):
    """Inputs of the :class:`EntryFeatures` of RNN-MLP, which also contain the logarithm of the parameter.

    Attributes:
        grad: (1, *s).
        param: (1, *s).
        momentum: (k, *s).
        second_moment: (k, *s).
    """

    grad: Tensor
    param: Tensor
    momentum: Tensor
    second_moment: Tensor

    def features(self) -> list[Feature]:
        root = torch.rsqrt(self.second_moment + SECOND_MOMENT_EPS)
        size = torch.log(self.param.abs() + 1e-8)
        return [self.grad, self.param, size, self.momentum, self.second_moment, (self.momentum, root), root]

    def parts(self, rows: int) -> list[MomentFeatures]:
        pieces = (split_rows(x, rows, self.param.shape[1]) for x in self)
        return [MomentFeatures(*piece) for piece in zip(*pieces, strict=True)]
