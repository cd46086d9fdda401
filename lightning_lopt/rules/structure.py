"""Whether tensors look trained: rows of a matrix are independent at random initialisation, and training aligns them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lopt.rules.arithmetic import TINY, matrix_shape

LARGEST_BLOCK = 1024  # rows and columns that are looked at: more tell little more, and their products take long
SMALLEST_SIDE = 4  # fewer vectors tell nothing
SIGNIFICANT = 4.5  # standard deviations that chance alone does not reach
CLEAR = 0.3  # excess from which on a tensor counts as trained throughout: published weights have 0.5 to 300
LARGEST = 1.0  # a single tensor counts no more than this excess in the mean over a model
SURE = 3.0  # a model counts as trained throughout where its mean says so by a third
SMALL_SIDE = 32.0  # so many vectors without excess are as likely of a trained tensor as of a new one


def excess(x: Tensor) -> Tensor:
    r"""How much more alike the rows of a matrix are than independent ones, 0-dim: 0 at random initialisation.

    Of the n vectors of the shorter side (of :func:`~lightning_lopt.rules.arithmetic.matrix_shape`'s matrix, at most
    1024 x 1024 of it), with k entries each, it is :math:`k \, \mathrm{mean}_{i \ne j} \cos^2_{ij} - 1`: the mean square
    of a cosine is 1 / k if entries are independent, whatever their distribution. Entries are taken relative to their
    mean, and columns are brought to one length before, so that neither a uniform distribution on [0, 1] nor scales of
    rows or columns look like training. It is negative for orthogonal matrices. Vectors and matrices with a side below 4
    give 0.

    >>> bool(excess(torch.randn(64, 32, generator=torch.Generator().manual_seed(0))) < 0.1)
    True
    >>> excess(torch.outer(torch.arange(64.0), torch.arange(32.0))) > 10
    tensor(True)
    """
    rows, columns = (min(size, LARGEST_BLOCK) for size in matrix_shape(x.shape))
    if x.ndim < 2 or min(rows, columns) < SMALLEST_SIDE:
        return x.new_zeros(())
    matrix = x.reshape(matrix_shape(x.shape))[:rows, :columns]
    vectors = matrix if rows <= columns else matrix.mT
    count, entries = vectors.shape
    vectors = vectors - vectors.mean()
    for axis in (0, 1):
        vectors = vectors / torch.sqrt(vectors.square().sum(axis, keepdim=True) + TINY)
    cosines = vectors @ vectors.mT
    squares = cosines.square().sum() - cosines.diagonal().square().sum()
    return squares / (count * (count - 1)) * entries - 1


def compared(shape: torch.Size) -> int:
    """The number n of vectors that :func:`excess` compares in a tensor of this shape, 0 where it compares none.

    The standard deviation of the excess is about 2 / n at random initialisation.

    >>> compared(torch.Size([64, 32])), compared(torch.Size([64]))
    (32, 0)
    """
    count = min(*matrix_shape(shape), LARGEST_BLOCK) if len(shape) > 1 else 0
    return count if count >= SMALLEST_SIDE else 0


def trained(excesses: Tensor, counts: Tensor, alike: Tensor) -> Tensor:
    r"""How trained each of N tensors looks, from 0 to 1, (N,), by itself and by all of them together.

    An excess e of n vectors shows :math:`\log(1 + \max(e - 9 / n, 0)) / \log 1.3`, cut off at 1. The mean over all
    tensors, weighted by :math:`n^2` and with e at most 1, shows three times that of itself, which tensors that are
    alike share in.

    Args:
        excesses: of each tensor, (N,), see :func:`excess`.
        counts: of the vectors that it compared, (N,), see :func:`compared`.
        alike: how far each tensor is taken to be like the others where it shows nothing itself, from 0 to 1, (N,).

    >>> values = torch.tensor([5.0, 0.0, 0.0]), torch.tensor([64.0, 8.0, 0.0]), torch.tensor([0.5, 0.5, 1.0])
    >>> trained(*values)
    tensor([1.0000, 0.5000, 1.0000])
    """
    weights = counts.square()
    total = weights.sum() + TINY
    mean = (weights * excesses.clamp(max=LARGEST)).sum() / total
    of_all = (SURE * _shown(mean, 2 / total.sqrt())).clamp(max=1.0)
    return torch.maximum(_shown(excesses, 2 / counts.clamp(min=SMALLEST_SIDE)), of_all * alike)


def _shown(excess: Tensor, deviation: Tensor) -> Tensor:
    beyond = (excess - SIGNIFICANT * deviation).clamp(min=0.0)
    return (torch.log1p(beyond) / math.log1p(CLEAR)).clamp(max=1.0)
