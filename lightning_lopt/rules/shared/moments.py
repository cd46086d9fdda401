r"""The state of learned optimizers for a tensor: momenta, second moment and factored second moments.

A factored second moment consists of the row and column means of a matrix, as in Adafactor.
For a tensor of shape s with its largest axis d0 and its second largest d1 (:func:`factored_axes`) and
:math:`q = g^2 + 10^{-30}`,

.. math::
    r_j \leftarrow c_j r_j + (1 - c_j)\,\mathrm{mean}_{d0}(q), \quad
    l_j \leftarrow c_j l_j + (1 - c_j)\,\mathrm{mean}_{d1}(q), \quad
    \frac{g}{\sqrt{q}} \approx g\, R_j L_j, \quad
    R_j = \max\Big(\frac{r_j}{\mathrm{mean}_{d1}(r_j) + 10^{-9}}, 10^{-9}\Big)^{-1/2}, \quad
    L_j = \max(l_j, 10^{-9})^{-1/2}.

Tensors of rank < 2 have k second moments that are not factored. Rows and columns are broadcastable to s: the axis of
the mean has size 1. References: Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235; the constants are those of
Metz et al. 2022, https://arxiv.org/abs/2203.11860.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.shared.arithmetic import TINY
from lightning_lopt.rules.shared.averages import average

FACTOR_EPS = 1e-9
Ties = Literal["first", "last"]
Matrix = Literal["flat", "stored"]  # tensors of rank > 2 as (out, everything else), or with the axes of the reference


def factored_axes(shape: Sequence[int], ties: Ties) -> tuple[int, int]:
    """(d1, d0): the axes of the second largest and of the largest size, for rank >= 2.

    Of two axes of the same size, ``ties="last"`` treats the last axis as the larger axis, as the reference does for its
    (in, out) matrices; ``"first"`` is the same choice for transposed matrices, (out, in).

    >>> factored_axes((6, 5), "last"), factored_axes((4, 4), "last"), factored_axes((4, 4), "first")
    ((1, 0), (0, 1), (1, 0))
    """
    sign = 1 if ties == "last" else -1
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis], sign * axis))
    return order[-2], order[-1]


def init_factored(like: Tensor, axes: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Zeros for k = ``count`` decays: rows, shape (k, *s) with size 1 of axis d0, and columns, with size 1 of d1."""
    d1, d0 = axes
    rows = [1 if axis == d0 else size for axis, size in enumerate(like.shape)]
    columns = [1 if axis == d1 else size for axis, size in enumerate(like.shape)]
    return like.new_zeros(count, *rows), like.new_zeros(count, *columns)


def update_factored(
    rows: Tensor, columns: Tensor, square: Tensor, axes: tuple[int, int], rates: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows and columns after one more squared gradient, shape s, with the k ``rates`` 1 - c."""
    d1, d0 = axes
    rows = average(rows, square.mean(d0, keepdim=True) + TINY, rates)
    return rows, average(columns, square.mean(d1, keepdim=True) + TINY, rates)


def factors(rows: Tensor, columns: Tensor, axes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """R and L, of the shapes of ``rows`` and ``columns``: g R L is the gradient over its factored root mean square."""
    d1, _ = axes
    relative = rows / (rows.mean(d1 + 1, keepdim=True) + FACTOR_EPS)
    return torch.rsqrt(relative.clamp(min=FACTOR_EPS)), torch.rsqrt(columns.clamp(min=FACTOR_EPS))


def diagonal_factor(diagonal: Tensor) -> Tensor:
    """R L for rank < 2, from the averages (k, *s) of the square. The added 1e-9 replaces the lower limit of the
    reference."""
    return torch.rsqrt(diagonal + FACTOR_EPS)


class Rates(NamedTuple):
    """1 - d of the k momenta, (k,); of the second moment; of the k factored second moments, (k,)."""

    momentum: Tensor
    second_moment: float | Tensor
    factored: Tensor


def init_averages(param: Tensor, count: int, ties: Ties) -> dict[str, Tensor]:
    """Zeros for a tensor of shape s, rank >= 1, at k = ``count`` decays.

    Returns:
        ``momentum`` (k, *s) and ``second_moment`` s; for rank >= 2 ``rows`` and ``columns`` of
        :func:`init_factored`, else ``diagonal`` (k, *s).
    """
    averages = {"momentum": param.new_zeros(count, *param.shape), "second_moment": torch.zeros_like(param)}
    if param.ndim < 2:
        return {**averages, "diagonal": param.new_zeros(count, *param.shape)}
    rows, columns = init_factored(param, factored_axes(param.shape, ties), count)
    return {**averages, "rows": rows, "columns": columns}


def update_averages(state: Mapping[str, Tensor], grad: Tensor, rates: Rates, ties: Ties) -> dict[str, Tensor]:
    """The averages after one more gradient, shape s."""
    square = grad.square()
    averages = {
        "momentum": average(state["momentum"], grad, rates.momentum),
        "second_moment": torch.lerp(state["second_moment"], square, rates.second_moment),
    }
    if grad.ndim < 2:
        return {**averages, "diagonal": average(state["diagonal"], square + TINY, rates.factored)}
    axes = factored_axes(grad.shape, ties)
    rows, columns = update_factored(state["rows"], state["columns"], square, axes, rates.factored)
    return {**averages, "rows": rows, "columns": columns}
