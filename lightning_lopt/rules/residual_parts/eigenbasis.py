"""The eigenbases of a matrix' gradients, followed from step to step by matrix products alone.

SOAP (Vyas et al. 2024, https://arxiv.org/abs/2409.11321) runs Adam in the eigenbases of Shampoo's two covariances,
which it renews by QR decompositions every few steps. Here a basis is turned a little instead, by all Jacobi rotations
at once, to first order: that maps over many models under ``vmap``, needs no decomposition, and begins at the identity,
where it is plain Adam.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.shared.arithmetic import TINY, matrix_shape
from lightning_lopt.rules.shared.blocks import in_blocks
from lightning_lopt.rules.shared.products import added_product, gram, product

LARGEST_SIDE = 1024  # a longer side of a matrix keeps its own axes: its basis would cost too much
LARGEST_TURN = 0.5  # radians that any direction may turn in a step: from about 1 on, turns are chaotic (rounding grows)
EQUAL = 0.3  # two variances that differ by less than the root of this, relatively, decouple more slowly
NULL = (
    3e-5  # variances below this share of the largest are not decoupled from each other: their coupling may be rounding
)
EVENING = ((6.7524, -18.351, 13.2633), (2.5379, -1.8747, 0.4413))  # quintic coefficients of two steps, see out_evened
TIE = 0.01  # of two equal variances the earlier axis takes the larger, as if it were larger by this share already


def init_bases(param: Tensor, longest_side: int = LARGEST_SIDE) -> dict[str, Tensor]:
    """Covariances (zeros) and bases (the identity) of the sides of a tensor of rank >= 2, as its matrix.

    The longer of two sides of different length keeps its own axes if it is longer than ``longest_side``.
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

    Covariances are symmetric, so two of one size n share a tensor (n, n): the triangle below the diagonal and the
    diagonal are those of the rows, the triangle above is that of the columns, whose diagonal is stored beside it.

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
    """The covariance (n, n) of a side, ``"row"`` or ``"column"``, that has one."""
    if "covariances" not in state:
        return state[f"{side}_covariance"]
    if side == "row":
        lower = state["covariances"].tril()
        return lower + lower.tril(-1).mT
    upper = state["covariances"].triu(1)
    return upper + upper.mT + torch.diag_embed(state["column_variances"])


def follow(old: Mapping[str, Tensor], grad: Tensor, rate: Tensor, *, turn: bool = True) -> dict[str, Tensor]:
    """Covariances with the gradient (a tensor of rank >= 2) taken in at ``rate``, and bases turned towards theirs.

    Without ``turn`` the bases stay as they are.
    """
    matrix = grad.reshape(matrix_shape(grad.shape))
    sides = [side for side in ("row", "column") if f"{side}_basis" in old]
    # the covariances of this gradient alone are freed before the bases turn
    new = {
        key: torch.lerp(old[key], value, rate)
        for key, value in stored({side: _covariance(matrix, side) for side in sides}).items()
    }
    for side in sides:
        basis = old[f"{side}_basis"]
        new[f"{side}_basis"] = turned(basis, covariance_of(new, side)) if turn else basis
    return new


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
    third damps it where variances are about equal, the fourth where both are null.

    Rounding turns nothing: couplings of its size give angles of its size. Two equal variances that are coupled, as of
    duplicated inputs, would stay as they are but for rounding; here the earlier axis takes the larger variance.
    """
    covariance = covariance / (covariance.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None] + TINY)
    coupling = basis.mT @ covariance @ basis  # exact, since variances may differ by more than bfloat16 resolves
    variances = coupling.diagonal(dim1=-2, dim2=-1)
    rows, columns = variances[..., :, None], variances[..., None, :]
    gaps = (1 - TIE) * columns - (1 + TIE) * rows  # above the diagonal, where the axis of the row comes first
    angles = coupling * gaps / (gaps.square() + coupling.square() + EQUAL * rows * columns + NULL**2)
    angles = angles.triu(1)
    angles = angles - angles.mT
    square = product(angles, angles)
    # Singular values of an antisymmetric matrix come in pairs, so none of the square is larger than this:
    norm = torch.sqrt(square.square().sum((-2, -1), keepdim=True) / 2 + TINY)
    limit = (LARGEST_TURN**2 / norm).clamp(max=1.0)
    angles, square = limit.sqrt() * angles, limit * square
    # Of exp(A) = 1 + A + A² / 2 + A³ / 6 ..., but with A³ / 8: that is orthogonal up to A⁶ / 64.
    rotated = product(basis, angles)
    rotated = basis + rotated + product(rotated, angles / 2 + square / 8)
    return 1.5 * rotated - 0.5 * product(rotated, gram(rotated.mT))  # a Newton-Schulz step back to orthogonal


def out_evened(x: Tensor, bases: Mapping[str, Tensor], *, overwrites: bool = False) -> Tensor:
    r"""``x`` out of the bases of :func:`into_bases`, with singular values near 1 where only one side has a basis.

    This stands in for a basis of the long side. It approximates the nearest semi-orthogonal matrix, as
    :func:`~lightning_lopt.rules.shared.arithmetic.orthogonalise` does, but computes in the short side alone: for X of m
    rows, which have the basis Q, and n columns, two steps of

    .. math:: A = X X^\top / \lVert (X X^\top)^2 \rVert_F^{1/2}, \qquad q = a I + b A + c A^2, \qquad
        W \leftarrow q W, \qquad A \leftarrow q A q

    begin with W = I, and Q W X is the result. The norm bounds the largest singular value closely, so two steps suffice
    where five are usual; their coefficients are those of the odd quintics that come closest to 1 on [0.05, 1] and on
    what the first of them makes of it. Singular values of at least 0.05 of the bound end between 0.78 and 1.22.

    FLOPs: 4 m² n + 12 m³ beside a product with Q; zeros stay zeros.

    Args:
        x: in the bases.
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
    # With q = a I + P, a product with q is a sum, in which no identity is formed.
    (a, b, c), (a_next, b_next, c_next) = EVENING
    first = torch.addcmul(squared * (b / bound), fourth, c / bound.square())
    squared = squared / bound
    for _ in range(2):
        squared = added_product(squared, squared, first, beta=a)
    second = added_product(squared, squared, squared, beta=b_next, alpha=c_next)
    factor = added_product(basis, basis, second, beta=a_next)
    factor = added_product(factor, factor, first, beta=a) / torch.sqrt(trace * bound)

    def multiplied(block: Tensor) -> tuple[Tensor]:
        return (product(factor, block) if on_rows else product(block, factor.mT),)

    place = matrix if overwrites else None
    return in_blocks(multiplied, matrix, axis=free_axis(bases), may_overwrite=place)[0].reshape(x.shape)


def into_bases(x: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
    """Coordinates of ``x`` in the bases of :func:`follow`: a tensor of its own shape."""
    rows = [bases["row_basis"].mT] if "row_basis" in bases else []
    columns = [bases["column_basis"]] if "column_basis" in bases else []
    return product(*rows, x.reshape(matrix_shape(x.shape)), *columns).reshape(x.shape)


def out_of_bases(x: Tensor, bases: Mapping[str, Tensor], *, overwrites: bool = False) -> Tensor:
    """The inverse of :func:`into_bases`; with ``overwrites`` the result may be written to the memory of ``x``."""
    rows = [bases["row_basis"]] if "row_basis" in bases else []
    columns = [bases["column_basis"].mT] if "column_basis" in bases else []

    def multiplied(block: Tensor) -> tuple[Tensor]:
        return (product(*rows, block.reshape(matrix_shape(block.shape)), *columns).reshape(block.shape),)

    return in_blocks(multiplied, x, axis=free_axis(bases), may_overwrite=x if overwrites else None)[0]


def turned_over(x: Tensor, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Tensor:
    """Coordinates in the bases ``new`` of a tensor that has the coordinates ``x`` in the bases ``old``."""
    return into_bases(out_of_bases(x, old), new)


def free_axis(bases: Mapping[str, Tensor]) -> int:
    """The axis of a matrix whose slices the bases transform one by one, where they are not two: 1 for a basis of the
    rows, 0 otherwise. A tensor with two bases is never large enough for blocks (:data:`LARGEST_SIDE`)."""
    return 1 if "row_basis" in bases else 0
