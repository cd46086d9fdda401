"""What the LSTM and the network of RNN-MLP see of a tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.accumulators import constants
from lightning_lopt.rules.arithmetic import variance
from lightning_lopt.rules.features import Feature, split_rows

SECOND_MOMENT_EPS = 1e-6
CLIP_DECAY = 0.99
AXES = 4
STATISTICS = 12 + AXES


class Moments(NamedTuple):
    """Gradient and parameter, (1, *s), momenta and second moments, (k, *s)."""

    grad: Tensor
    param: Tensor
    momentum: Tensor
    second_moment: Tensor

    def features(self) -> list[Feature]:
        root = torch.rsqrt(self.second_moment + SECOND_MOMENT_EPS)
        size = torch.log(self.param.abs() + 1e-8)
        return [self.grad, self.param, size, self.momentum, self.second_moment, (self.momentum, root), root]

    def parts(self, rows: int) -> list[Moments]:
        pieces = (split_rows(x, rows, self.param.shape[1]) for x in self)
        return [Moments(*each) for each in zip(*pieces, strict=True)]


def tensor_statistics(moments: Moments, rank: int, sizes: list[int]) -> Tensor:
    """What the LSTM sees of a tensor by itself, shape (STATISTICS,), in the order of the reference.

    Log norm of the gradient; whether its ``rank`` is 0, ±1; log and sign of the mean of momenta, of second moments and
    of the parameter; its log norm; log sizes of four axes, those missing being 1; and, for the end of all signals, the
    log variances of momenta, second moments and parameter.
    """
    grad, param, *averages = moments
    means = [_mean(x) for x in (*averages, param)]
    pairs = [x for mean in means for x in (_log(mean), mean.sign())]
    variances = [_log(variance(x.flatten())) for x in (*averages, param)]
    norms = [_log(torch.linalg.vector_norm(x)) for x in (grad, param)]
    shape = constants([math.log(max(size, 1)) - 1 for size in (*sizes[:AXES], *[1] * (AXES - len(sizes)))], param)
    scalar = constants([1.0 if rank == 0 else -1.0], param)
    return torch.cat([norms[0][None], scalar, torch.stack([*pairs, norms[1]]), shape, torch.stack(variances)])


def clip_limit(clip: Tensor) -> Tensor:
    """Ten times the running size of gradients, 0-dim; ``clip`` holds that size and its count, (2,)."""
    size, count = clip
    limit: Tensor = 10 * size / -torch.expm1(count * math.log(CLIP_DECAY))
    return limit


def clip_updated(clip: Tensor, powers: Tensor) -> Tensor:
    """Running size and count, (2,), with the mean squares of the clipped gradients of all tensors, (n,)."""
    size, count = clip
    size = torch.lerp(size, torch.sqrt(1e-8 + powers.mean()), 1 - CLIP_DECAY)
    return torch.stack([size, count + 1])


def _mean(x: Tensor) -> Tensor:
    return x.mean()


def _log(x: Tensor) -> Tensor:
    return torch.log(1e-8 + x.abs()).clamp(-5.0, 5.0)
