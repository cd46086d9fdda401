"""What learned optimizers remember of a tensor: momenta, second moment, factored second moments, each at its decays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.accumulators import average
from lightning_lopt.rules.arithmetic import TINY
from lightning_lopt.rules.factored import Ties, factored_axes, init_factored, update_factored


class Rates(NamedTuple):
    """1 - d of the k momenta, (k,); of the second moment; of the k factored second moments, (k,)."""

    momentum: Tensor
    second_moment: float | Tensor
    factored: Tensor


def init_averages(param: Tensor, count: int, ties: Ties) -> dict[str, Tensor]:
    """Zeros for a tensor of shape s, rank >= 1, at k = ``count`` decays.

    Returns:
        ``momentum`` (k, *s) and ``second_moment`` s; for rank >= 2 ``rows`` and ``columns`` of
        :func:`~lightning_lopt.rules.factored.init_factored`, else ``diagonal`` (k, *s).
    """
    own = {"momentum": param.new_zeros(count, *param.shape), "second_moment": torch.zeros_like(param)}
    if param.ndim < 2:
        return {**own, "diagonal": param.new_zeros(count, *param.shape)}
    rows, columns = init_factored(param, factored_axes(param.shape, ties), count)
    return {**own, "rows": rows, "columns": columns}


def update_averages(old: Mapping[str, Tensor], grad: Tensor, rates: Rates, ties: Ties) -> dict[str, Tensor]:
    """The averages with a gradient of shape s taken into them."""
    square = grad.square()
    new = {
        "momentum": average(old["momentum"], grad, rates.momentum),
        "second_moment": torch.lerp(old["second_moment"], square, rates.second_moment),
    }
    if grad.ndim < 2:
        return {**new, "diagonal": average(old["diagonal"], square + TINY, rates.factored)}
    axes = factored_axes(grad.shape, ties)
    new["rows"], new["columns"] = update_factored(old["rows"], old["columns"], square, axes, rates.factored)
    return new
