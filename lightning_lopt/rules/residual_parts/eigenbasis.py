"""Tracks the eigenbases of the gradients of a matrix from step to step, by matrix products only.

SOAP (Vyas et al. 2024, https://arxiv.org/abs/2409.11321) runs Adam in the eigenbases of Shampoo's two covariances, and
recomputes these bases by QR decompositions every few steps. Here, all Jacobi rotations at once, to first order, turn a
basis a little. This method runs under ``vmap`` over many models, needs no decomposition, and begins at the identity,
where the rule is plain Adam.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.shared.arithmetic import TINY, matrix_shape
from lightning_lopt.rules.shared.blocks import Output, in_blocks
from lightning_lopt.rules.shared.products import added_product, gram, product

LARGEST_SIDE = 1024  # a longer side of a matrix has no basis, which would cost too much
LARGEST_TURN = 0.5  # radians that any direction may turn in a step: from about 1 on, turns are chaotic (rounding grows)
EQUAL = 0.3  # two variances whose relative difference is below the square root of this decouple more slowly
NULL = 3e-5  # the coupling of variances below this share of the largest may be a rounding error and is kept
EVENING = ((6.7524, -18.351, 13.2633), (2.5379, -1.8747, 0.4413))  # quintic coefficients of two steps, see out_evened
TIE = 0.01  # relative offset that makes the variance of the earlier axis the larger of two equal variances


def init_bases(param: Tensor, longest_side: int = LARGEST_SIDE) -> dict[str, Tensor]:
    """Covariances (zeros) and bases (the identity) of the sides of a tensor of rank >= 2, as its matrix.

    The longer of two sides of different length has no basis if it is longer than ``longest_side``.
    """
    bases, sizes = {}, matrix_shape(param.shape)
    for side, size in zip(("row", "column"), sizes, strict=True):
        if 0 < size <= LARGEST_SIDE and (size <= longest_side or size == min(sizes)):
            bases[side] = torch.eye(size, dtype=param.dtype, device=param.device)
    covariances = stored({side: torch.zeros_like(basis) for side, basis in bases.items()})
    state = {key: value.clone() for key, value in covariances.items()}  # one value is a view of a diagonal
    return state | {f"{side}_basis": basis for side, basis in bases.items()}


def stored(covariances: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that holds the covariances of the sides of a matrix, the inverse of :func:`covariance_of`.

    Covariances are symmetric, so two covariances of the same size n share a tensor (n, n). Its lower triangle and
    diagonal belong to the rows, its upper triangle to the columns; the diagonal of the columns is a separate tensor.

    >>> rows, columns = torch.tensor([[1.0, 2.0], [2.0, 3.0]]), torch.tensor([[4.0, 5.0], [5.0, 6.0]])
    >>> stored({"row": rows, "column": columns})
    {'covariances': tensor([[1., 5.],
            [2., 3.]]), 'column_variances': tensor([4., 6.])}
    """
    if len({covariance.shape for covariance in covariances.values()}) == len(covariances):
        return {f"{side}_covariance": covariance for side, covariance in covariances.items()}
    row, column = covariances["row"], covariances["column"]
    return {"covariances": row.tril() + column.triu(1), "column_variances": column.diagonal(dim1=-2, dim2=-1)}


def covariance_of(state: Mapping[str, Tensor], side: str) -> Tensor:
    """The covariance (n, n) of a side with a basis, ``"row"`` or ``"column"``."""
    if "covariances" not in state:
        return state[f"{side}_covariance"]
    if side == "row":
        lower = state["covariances"].tril()
        return lower + lower.tril(-1).mT
    upper = state["covariances"].triu(1)
    return upper + upper.mT + torch.diag_embed(state["column_variances"])


def follow(state: Mapping[str, Tensor], grad: Tensor, rate: Tensor, *, turn: bool = True) -> dict[str, Tensor]:
    """Average a gradient (a tensor of rank >= 2) into the covariances, and turn the bases towards their eigenvectors.

    The gradient has the weight ``rate``. Without ``turn`` the bases do not change.
    """
    matrix = grad.reshape(matrix_shape(grad.shape))
    sides = [side for side in ("row", "column") if f"{side}_basis" in state]
    # The covariances of this gradient alone are freed before the bases turn.
    new_state = {
        key: torch.lerp(state[key], value, rate)
        for key, value in stored({side: _covariance(matrix, side) for side in sides}).items()
    }
    for side in sides:
        basis = state[f"{side}_basis"]
        new_state[f"{side}_basis"] = turned(basis, covariance_of(new_state, side)) if turn else basis
    return new_state


def _covariance(matrix: Tensor, side: str) -> Tensor:
    """``matrix @ matrix.mT`` of a gradient (n, m) for ``"row"``, ``matrix.mT @ matrix`` for ``"column"``."""
    if side == "row":
        return in_blocks(lambda block: (gram(block),), matrix, axis=1, sums=1)[0]
    return in_blocks(lambda block: (gram(block.mT),), matrix, sums=1)[0]


def turned(basis: Tensor, covariance: Tensor) -> Tensor:
    r"""An orthogonal basis (n, n), in columns, turned towards the eigenvectors of a covariance (n, n) of any scale.

    With :math:`D = Q^\top C Q` in units of the largest variance of C, and the gap :math:`\Delta = D_{jj} - D_{ii}`,
    axes i and j turn by :math:`D_{ij} \Delta / (\Delta^2 + D_{ij}^2 + 0.3\, D_{ii} D_{jj} + \nu^2)`. The second term
    makes this the angle of a Jacobi rotation (Golub and Van Loan, section 8.5), which is at most 1/2; the
    third damps the angle where variances are about equal, and the fourth damps it where both variances are about 0.

    Couplings by rounding errors give angles of the size of rounding errors. Two axes of equal variance that are
    coupled, as for duplicated inputs, have no gap, so rounding errors alone would decide how they turn. A small offset
    of the gap therefore lets the earlier axis take the larger variance.
    """
    covariance = covariance / (covariance.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None] + TINY)
    coupling = basis.mT @ covariance @ basis  # not in bfloat16, which may not resolve the ratio of two variances
    variances = coupling.diagonal(dim1=-2, dim2=-1)
    rows, columns = variances[..., :, None], variances[..., None, :]
    gaps = (1 - TIE) * columns - (1 + TIE) * rows  # used above the diagonal, where the axis of the row comes first
    angles = coupling * gaps / (gaps.square() + coupling.square() + EQUAL * rows * columns + NULL**2)
    angles = angles.triu(1)
    angles = angles - angles.mT
    square = product(angles, angles)
    # Singular values of an antisymmetric matrix come in pairs, so no singular value of the square exceeds this norm.
    norm = torch.sqrt(square.square().sum((-2, -1), keepdim=True) / 2 + TINY)
    limit = (LARGEST_TURN**2 / norm).clamp(max=1.0)
    angles, square = limit.sqrt() * angles, limit * square
    # The series of exp(A) is 1 + A + A² / 2 + A³ / 6 ...; with A³ / 8 instead, the sum is orthogonal up to A⁶ / 64.
    rotated = product(basis, angles)
    rotated = basis + rotated + product(rotated, angles / 2 + square / 8)
    return 1.5 * rotated - 0.5 * product(rotated, gram(rotated.mT))  # a Newton-Schulz step back to orthogonal


def out_evened(x: Tensor, bases: Mapping[str, Tensor], *, overwrites: bool = False) -> Tensor:
    r"""The inverse of :func:`into_bases`, which also moves singular values near 1 if only one side has a basis.

    This replaces a basis of the long side. The result approximates the nearest semi-orthogonal matrix, as that of
    :func:`~lightning_lopt.rules.shared.arithmetic.orthogonalise` does, but the iteration works on matrices of the
    short side only. The matrix X has m rows, which have the basis Q, and n columns. Beginning with W = I, two steps

    .. math:: A = X X^\top / \lVert (X X^\top)^2 \rVert_F^{1/2}, \qquad q = a I + b A + c A^2, \qquad
        W \leftarrow q W, \qquad A \leftarrow q A q

    give the result Q W X. The norm bounds the largest singular value closely, so two steps suffice, although five are
    usual. The coefficients are those of the odd quintics that come closest to 1: the first quintic on [0.05, 1], the
    second on the image of that interval under the first. Singular values of at least 0.05 of the bound end between 0.78
    and 1.22. A matrix of zeros stays zero.

    FLOPs: 4 m² n + 12 m³ in addition to a product with Q.

    Args:
        x: a tensor in the bases.
        bases: as in :func:`into_bases`.
        overwrites: whether the result may be written to the memory of ``x``.
    """
    if ("row_basis" in bases) == ("column_basis" in bases):
        return out_of_bases(x, bases, overwrites=overwrites)
    on_rows = "row_basis" in bases
    basis = bases["row_basis" if on_rows else "column_basis"]
    matrix = x.reshape(matrix_shape(x.shape))
    squared = _covariance(matrix, "row" if on_rows else "column")
    trace = squared.diagonal().sum() + TINY
    squared = squared / trace
    fourth = product(squared, squared)
    bound = torch.sqrt(torch.linalg.vector_norm(fourth) + TINY)  # of the largest eigenvalue
    # With q = a I + P, a product with q is a X + P X, which needs no identity matrix.
    (a, b, c), (a_next, b_next, c_next) = EVENING
    first_terms = torch.addcmul(squared * (b / bound), fourth, c / bound.square())
    squared = squared / bound
    for _ in range(2):
        squared = added_product(squared, squared, first_terms, beta=a)
    second_terms = added_product(squared, squared, squared, beta=b_next, alpha=c_next)
    factor = added_product(basis, basis, second_terms, beta=a_next)
    factor = added_product(factor, factor, first_terms, beta=a) / torch.sqrt(trace * bound)

    def multiplied(block: Tensor) -> tuple[Tensor]:
        return (product(factor, block) if on_rows else product(block, factor.mT),)

    outputs = {0: Output(matrix)} if overwrites else {}
    return in_blocks(multiplied, matrix, axis=free_axis(bases), outputs=outputs)[0].reshape(x.shape)


def into_bases(x: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
    """Coordinates of ``x`` in the bases of :func:`follow`: a tensor of the shape of ``x``."""
    rows = [bases["row_basis"].mT] if "row_basis" in bases else []
    columns = [bases["column_basis"]] if "column_basis" in bases else []
    return product(*rows, x.reshape(matrix_shape(x.shape)), *columns).reshape(x.shape)


def out_of_bases(x: Tensor, bases: Mapping[str, Tensor], *, overwrites: bool = False) -> Tensor:
    """The inverse of :func:`into_bases`; with ``overwrites`` the result may be written to the memory of ``x``."""
    rows = [bases["row_basis"]] if "row_basis" in bases else []
    columns = [bases["column_basis"].mT] if "column_basis" in bases else []

    def multiplied(block: Tensor) -> tuple[Tensor]:
        return (product(*rows, block.reshape(matrix_shape(block.shape)), *columns).reshape(block.shape),)

    return in_blocks(multiplied, x, axis=free_axis(bases), outputs={0: Output(x)} if overwrites else {})[0]


def turned_over(x: Tensor, old_bases: Mapping[str, Tensor], new_bases: Mapping[str, Tensor]) -> Tensor:
    """Change of bases: coordinates in ``new_bases`` of the tensor whose coordinates in ``old_bases`` are ``x``."""
    return into_bases(out_of_bases(x, old_bases), new_bases)


def free_axis(bases: Mapping[str, Tensor]) -> int:
    """The axis along which a matrix with at most one basis is cut into blocks that are transformed independently: 1 for
    a basis of the rows, 0 otherwise. A tensor with two bases is never large enough for blocks (:data:`LARGEST_SIDE`).
    """
    return 1 if "row_basis" in bases else 0
