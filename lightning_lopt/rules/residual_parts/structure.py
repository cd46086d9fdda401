"""Measures whether tensors were trained before: training leaves structure in them, random initialisation does not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.contract.roles import Role
from lightning_lopt.rules.shared.arithmetic import TINY, matrix_shape

LARGEST_BLOCK = 1024  # largest number of rows and columns that are used: more change the result little and cost time
SMALLEST_SIDE = 4  # least number of vectors for a measurement
SMALLEST_GAIN = 8  # least number of entries of a gain; one in 20,000 random vectors of this size looks like a gain
SIGNIFICANT = 4.0  # standard deviations above the mean that random vectors do not reach
CLEAR = 0.3  # excess from which on a tensor counts as fully trained; published weights have 0.5 to 300
LARGEST = 1.0  # limit of the excess of a single tensor in the mean over a model
SURE = 3.0  # a model counts as fully trained if the degree of its mean excess is at least a third
SMALL_SIDE = 32.0  # number of vectors without excess that is as likely in a trained matrix as in a new one
ADAPTED = 0.6  # degree to which adapters, and a new head beside them, count as trained if examples are repeated
NEW_HEAD = 0.5  # degree for a head without excess and a bias of zeros: they are new, but their inputs may be trained
ROUNDING = 1e-6  # rounding errors of entries, relative to their mean
SPREAD = 1e-3  # largest spread of new gains, relative to their mean: they are equal at initialisation
THIN = 4  # least ratio of the long side to the short side of a factor of an adapter


class Signs(NamedTuple):
    """Signs of training in one tensor, 0-dim each; :func:`trained` combines the signs of all tensors.

    Attributes:
        excess: see :func:`excess`.
        alone: degree to which the tensor looks trained by its excess alone, from 0 to 1.
        weight: weight of the excess in the mean over the model: the number of pairs of vectors in the measurement, or 0
            for vectors and embeddings, since a single pretrained embedding does not make the model pretrained.
        as_matrices: factor, from 0 to 1, with which the degree of all matrices of the model applies to the tensor.
        as_gains: factor, from 0 to 1, with which the degree of all gains of the model applies to the tensor.
        is_informative: 1 for a vector of 8 or more entries that are equal (new gains and new biases), or that are
            positive and nearly equal (trained gains of normalisation layers); else 0.
        moved: 1 for an informative vector whose entries are nearly equal but not equal, else 0.
        is_matrix: 1 in the role ``matrix``, else 0.
        is_first: 1 for a matrix of that role that may be the first factor of an adapter of low rank (Hu et al. 2021,
            https://arxiv.org/abs/2106.09685): it has more than four times as many columns as rows, and is not all
            zero; else 0.
        is_second: 1 for a matrix of that role that may be the second factor: it has more than four times as many rows
            as columns, and is all zero; else 0.
    """

    excess: Tensor
    alone: Tensor
    weight: Tensor
    as_matrices: Tensor
    as_gains: Tensor
    is_informative: Tensor
    moved: Tensor
    is_matrix: Tensor
    is_first: Tensor
    is_second: Tensor


def signs_of(param: Tensor, role: Role) -> Signs:
    """The signs of training in one tensor before its first step.

    >>> signs_of(torch.ones(8), "vector").moved, signs_of(torch.linspace(0.9, 1.1, 8), "vector").moved
    (tensor(0.), tensor(1.))
    """
    filled = param.new_full
    if param.ndim < 2:
        full, zero = filled((), 1.0), filled((), 0.0)
        if not param.numel():
            return Signs(zero, zero, zero, full, full, zero, zero, zero, zero, zero)
        mean = param.mean()
        equal = ((param - mean).abs() <= SPREAD * mean.abs()).all()
        moved = (param > 0.5 * mean).all() & (param < 1.5 * mean).all() & ~equal
        vector_degree = torch.where(equal, NEW_HEAD, full)
        is_long = float(param.numel() >= SMALLEST_GAIN)
        gain_signs = (is_long * (equal | moved)).to(param.dtype), (is_long * moved).to(param.dtype)
        return Signs(zero, zero, zero, vector_degree, vector_degree, *gain_signs, zero, zero, zero)
    rows, columns = matrix_shape(param.shape)
    count = min(rows, columns, LARGEST_BLOCK)
    is_measurable = count >= SMALLEST_SIDE
    pairs = count * (count - 1) / 2 if is_measurable else 1.0
    not_zero = (param != 0).any().to(param.dtype)
    degree = NEW_HEAD if role == "head" else 1.0
    degree_without_excess = degree if role == "head" or not is_measurable else 1 / (1 + (count / SMALL_SIDE) ** 2)
    tensor_excess = excess(param)
    alone = _degree(tensor_excess, filled((), pairs))
    return Signs(
        tensor_excess,
        alone,
        filled((), pairs if is_measurable and role == "matrix" else 0.0),
        torch.where(alone > 0, degree, degree_without_excess) * not_zero,
        degree * not_zero,
        filled((), 0.0),
        filled((), 0.0),
        filled((), float(role == "matrix")),
        not_zero * float(role == "matrix" and columns > THIN * rows),
        (1 - not_zero) * float(role == "matrix" and rows > THIN * columns),
    )


def excess(x: Tensor) -> Tensor:
    r"""Excess similarity of the rows of a matrix over independent rows, 0-dim: about 0 at random initialisation.

    The tensor is taken as a matrix (:func:`~lightning_lopt.rules.shared.arithmetic.matrix_shape`), of which at most
    1024 x 1024 entries are used. With n vectors along the shorter side, of k entries each, the excess is
    :math:`k \, \mathrm{mean}_{i \ne j} \cos^2_{ij} - 1`: the mean square of a cosine is 1 / k if entries are
    independent, whatever their distribution. The mean of all entries is subtracted first, and rows and columns are
    normalised, so that neither a uniform distribution on [0, 1] nor scales of rows or columns look like training. The
    excess of an orthogonal matrix is negative. The excess of a vector, and of a matrix with a side below 4, is 0.

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
    mean = vectors.mean()
    vectors = torch.where((vectors - mean).abs() > ROUNDING * mean.abs(), vectors - mean, 0.0)
    for axis in (0, 1):
        vectors = vectors / torch.sqrt(vectors.square().sum(axis, keepdim=True) + TINY)
    cosines = vectors @ vectors.mT
    squares = cosines.square().sum() - cosines.diagonal().square().sum()
    return squares / (count * (count - 1)) * entries - 1


def trained(signs: Signs, repetition: Tensor | float = 0.0) -> Tensor:
    r"""Degree to which each of N tensors looks trained, from 0 to 1, (N,).

    The degree is the largest of the degrees from the excess of the tensor, from all matrices, from all gains and from
    adapters.

    The degree of an excess e is :math:`\log(1 + \max(e - c, 0)) / \log 1.3`, at most 1, with the excess c of
    :func:`chance_excess`. The degree of all matrices is three times that of their weighted mean excess, with each e at
    most 1. The degree of all gains is the share by which vectors with ``moved`` outnumber the other vectors with
    ``is_informative``: a network may be initialised with random gains, but then its biases are zeros. The degrees of
    all matrices and of all gains are multiplied by ``as_matrices`` and ``as_gains`` of the tensor.

    An adapter on a frozen model has two factors, which are new, although the model was trained. If pairs of factors
    make up more than two thirds of the matrices, all tensors have a degree of up to 0.6 times ``repetition``.

    Args:
        signs: signs of all tensors, (N,) each.
        repetition: degree of repetition of examples, from 0 to 1, 0-dim.

    >>> embedding, gain = signs_of(torch.randn(50, 8), "embedding"), signs_of(torch.linspace(0.9, 1.1, 8), "vector")
    >>> trained(Signs(*(torch.stack(pair) for pair in zip(embedding, gain))))
    tensor([1., 1.])
    """
    total = signs.weight.sum().clamp(min=1.0)
    mean = (signs.weight * signs.excess.clamp(max=LARGEST)).sum() / total
    matrices = (SURE * _degree(mean, total)).clamp(max=1.0)
    gains = (2 * signs.moved.sum() / signs.is_informative.sum().clamp(min=1.0) - 1).clamp(min=0.0)
    adapters = ADAPTED * (6 * _adapters(signs) / signs.is_matrix.sum().clamp(min=1.0) - 2).clamp(0.0, 1.0) * repetition
    shared = torch.maximum(matrices * signs.as_matrices, gains * signs.as_gains)
    return torch.maximum(torch.maximum(signs.alone, shared), adapters)


def depth_of(signs: Signs) -> Tensor:
    """The number of matrices, 0-dim; the two factors of an adapter count as one matrix.

    >>> adapter = [signs_of(torch.randn(2, 32), "matrix"), signs_of(torch.zeros(32, 2), "matrix")]
    >>> depth_of(Signs(*(torch.stack(pair) for pair in zip(*adapter))))
    tensor(1.)
    """
    return signs.is_matrix.sum() - _adapters(signs)


def _adapters(signs: Signs) -> Tensor:
    """The number of pairs of factors, 0-dim."""
    return torch.minimum(signs.is_first.sum(), signs.is_second.sum())


def chance_excess(pairs: Tensor) -> Tensor:
    r"""The excess that P pairs of random vectors exceed in only one of about 30,000 draws.

    The sum of the squared cosines has about a chi-squared distribution with P degrees of freedom, whose quantiles are
    :math:`P (1 - 2 / 9P + z \sqrt{2 / 9P})^3` (Wilson and Hilferty 1931), with z = 4 here.

    >>> chance_excess(torch.tensor([6.0, 2016.0]))  # for 4 vectors, and for 64
    tensor([4.2026, 0.1310])
    """
    variance = 2 / (9 * pairs)
    return (1 - variance + SIGNIFICANT * variance.sqrt()) ** 3 - 1


def _degree(excess: Tensor, pairs: Tensor) -> Tensor:
    beyond = (excess - chance_excess(pairs)).clamp(min=0.0)
    return (torch.log1p(beyond) / math.log1p(CLEAR)).clamp(max=1.0)
