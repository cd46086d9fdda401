r"""Second moments of matrices kept as their row and column means, as in Adafactor, at several decays at once.

For a tensor of shape s with its largest axis d0 and its second largest d1 (:func:`factored_axes`) and
:math:`q = g^2 + 10^{-30}`,

.. math::
    r_j \leftarrow c_j r_j + (1 - c_j)\,\mathrm{mean}_{d0}(q), \quad
    l_j \leftarrow c_j l_j + (1 - c_j)\,\mathrm{mean}_{d1}(q), \quad
    \frac{g}{\sqrt{q}} \approx g\, R_j L_j, \quad
    R_j = \max\Big(\frac{r_j}{\mathrm{mean}_{d1}(r_j) + 10^{-9}}, 10^{-9}\Big)^{-1/2}, \quad
    L_j = \max(l_j, 10^{-9})^{-1/2}.

Tensors of rank < 2 keep the whole second moment. Rows and columns stay broadcastable to s: the axis that was averaged
over is kept with size 1. References: Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235; the constants are those
of Metz et al. 2022, https://arxiv.org/abs/2203.11860.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_lopt.rules.accumulators import average
from lightning_lopt.rules.arithmetic import TINY

FLOOR = 1e-9
Ties = Literal["first", "last"]
Matrix = Literal["flat", "stored"]  # tensors of rank > 2 as (out, everything else), or as the reference has them stored


def factored_axes(shape: Sequence[int], ties: Ties) -> tuple[int, int]:
    """(d1, d0): the axes of the second largest and of the largest size, for rank >= 2.

    Of two axes of the same size, ``ties="last"`` takes the last for the larger one, as the reference does with its
    (in, out) matrices; ``"first"`` is the same choice for the transposed, (out, in).

    >>> factored_axes((6, 5), "last"), factored_axes((4, 4), "last"), factored_axes((4, 4), "first")
    ((1, 0), (0, 1), (1, 0))
    """
    sign = 1 if ties == "last" else -1
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis], sign * axis))
    return order[-2], order[-1]


def init_factored(like: Tensor, axes: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Zeros for ``count`` decays: rows, shape (k, *s) with 1 in the place of axis d0, and columns, with 1 for d1."""
    d1, d0 = axes
    rows = [1 if axis == d0 else size for axis, size in enumerate(like.shape)]
    columns = [1 if axis == d1 else size for axis, size in enumerate(like.shape)]
    return like.new_zeros(count, *rows), like.new_zeros(count, *columns)


def update_factored(
    rows: Tensor, columns: Tensor, square: Tensor, axes: tuple[int, int], rates: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows and columns with the squared gradient, shape s, taken into them at the k ``rates`` 1 - c."""
    d1, d0 = axes
    rows = average(rows, square.mean(d0, keepdim=True) + TINY, rates)
    return rows, average(columns, square.mean(d1, keepdim=True) + TINY, rates)


def factors(rows: Tensor, columns: Tensor, axes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """R and L, of the shapes of ``rows`` and ``columns``: g R L is the gradient over its factored root mean square."""
    d1, _ = axes
    relative = rows / (rows.mean(d1 + 1, keepdim=True) + FLOOR)
    return torch.rsqrt(relative.clamp(min=FLOOR)), torch.rsqrt(columns.clamp(min=FLOOR))


def diagonal_factor(diagonal: Tensor) -> Tensor:
    """R L for rank < 2, from the averages (k, *s) of the square. The reference has the floor besides the 1e-9 added,
    which implies it."""
    return torch.rsqrt(diagonal + FLOOR)
