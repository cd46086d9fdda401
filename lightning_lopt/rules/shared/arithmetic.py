"""Arithmetic that several rules share: constants, normalisation, matrix form, orthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.shared.products import added_product, rounded_if_wide

TINY = 1e-30  # added to mean squares; a gradient with an RMS above about 1e-15 keeps its direction
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic coefficients of Jordan et al. 2024: steep at 0, fixed near 1


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor, shape (k,), in the type of ``like`` and on its device.

    The tensor is filled on the device, without a wait or a copy from the host, so the function works in CUDA graphs.
    """
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype)
    return torch.stack([torch.full((), value, dtype=like.dtype, device=like.device) for value in values])


def rms(x: Tensor) -> Tensor:
    """Root mean square over all entries, 0-dim; 1e-15 for a tensor of zeros, so that it can be a divisor."""
    return torch.sqrt(mean_square(x) + TINY)


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares of all entries, 0-dim, in one pass over them; 0 for an empty tensor.

    >>> mean_square(torch.tensor([[1.0, 3.0]]))
    tensor(5.)
    """
    return sum_of_squares(x) / max(x.numel(), 1)


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of the squares of all entries, 0-dim, in one pass over them."""
    flat = x.reshape(-1)
    return torch.dot(flat, flat)


def unit_rms(x: Tensor) -> Tensor:
    """``x`` scaled to root mean square 1; zeros stay zeros.

    >>> unit_rms(torch.tensor([3.0, 4.0])).square().mean()
    tensor(1.)
    """
    return x / rms(x)


def variance(x: Tensor) -> Tensor:
    """Mean square distance from the mean, over the last axis; on a CPU ten times as fast as ``torch.var``.

    >>> variance(torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]]))
    tensor([1., 0.])
    """
    norm: Tensor = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1)
    return norm.square() / max(x.shape[-1], 1)


def matrix_shape(shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
    """Shape of a tensor of rank >= 2 as a matrix, (out, everything else); a kernel has (out, in x kh x kw).

    >>> matrix_shape((16, 8, 3, 3)), matrix_shape((5,)), matrix_shape(())
    ((16, 72), (5, 1), (1, 1))
    """
    rows = shape[0] if len(shape) > 0 else 1
    return rows, math.prod(shape[1:])


def view(x: Tensor, *, flat: bool = True) -> Tensor:
    """``x`` as a tensor of rank 1 or as a matrix (:func:`matrix_shape`); without ``flat``, rank > 2 is kept.

    >>> view(torch.zeros(())).shape, view(torch.zeros(16, 8, 3, 3)).shape
    (torch.Size([1]), torch.Size([16, 72]))
    """
    if x.ndim < 2:
        return x.reshape(-1)
    return x.reshape(matrix_shape(x.shape)) if flat else x


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    r"""The nearest semi-orthogonal matrix, :math:`U V^\top` for :math:`x = U S V^\top`, approximated by Newton-Schulz.

    .. math:: X \leftarrow a X + (b\, X X^\top + c\, (X X^\top)^2) X, \qquad X_0 = x / \lVert x \rVert_F

    Singular values above about 1e-3 of the norm end between 0.7 and 1.2. Tensors of rank > 2 are treated as matrices
    (:func:`matrix_shape`). The iteration forms the smaller Gram matrix, so the cost is :math:`2 (2 r^2 n + r^3)` FLOPs
    a step for an r x n matrix, r <= n.

    Args:
        x: tensor of rank >= 2, any scale.
        steps: number of iterations.
    Returns:
        tensor of the shape of ``x``; zeros if ``x`` is zero.
    References: Bernstein and Newhouse 2024, https://arxiv.org/abs/2409.20325; Jordan et al. 2024 (Muon).
    """
    rows, columns = matrix_shape(x.shape)
    matrix = x.reshape(rows, columns)
    matrix = matrix / (rms(matrix) * math.sqrt(rows * columns))
    return newton_schulz(matrix, steps).reshape(x.shape)


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """The iteration of :func:`orthogonalise`, on matrices (..., rows, columns) of Frobenius norm at most 1.

    The iterations on wide matrices are in bfloat16 where a device has units for it, as in ``torch.optim.Muon``.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall, dtype = x.shape[-2] > x.shape[-1], x.dtype
    x = rounded_if_wide(x.mT if is_tall else x)
    for _ in range(steps):
        squared = x @ x.mT
        polynomial = added_product(squared, squared, squared, beta=b, alpha=c)
        x = added_product(x, polynomial, x, beta=a)
    x = x.to(dtype)
    return x.mT if is_tall else x
