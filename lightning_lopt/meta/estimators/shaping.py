"""Transformations of the loss differences of antithetic pairs, before they weight the perturbations."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Shaping = Literal["none", "sign", "rank"]


def check_shaping(shaping: Shaping) -> Shaping:
    """``shaping``, after a check that it is a known name.

    Raises:
        ValueError: if ``shaping`` is unknown.
    """
    if shaping not in get_args(Shaping):
        raise ValueError(f"shaping must be one of {get_args(Shaping)}, got {shaping!r}.")
    return shaping


def shape_differences(delta: Tensor, shaping: Shaping) -> Tensor:
    r"""Loss differences of antithetic pairs, unchanged, or robust to outliers but with a bias.

    - ``"none"``: unchanged; the estimate keeps its unit and its expectation.
    - ``"sign"``: :math:`\operatorname{sign}(\Delta_p)`.
    - ``"rank"``: the rank of :math:`\Delta_p` among the 2 P differences :math:`\pm\Delta`, centred and scaled to
      (-1, 1). Exchanging the particles of a pair changes only the sign; a difference of 0 stays 0.

    ``"sign"`` and ``"rank"`` remove the unit of the gradient, so they need an outer optimizer that does not depend on
    this unit (Adam).

    Args:
        delta: loss under +ε minus loss under -ε, shape ``(..., P)``, finite.

    References: Salimans et al. 2017, https://arxiv.org/abs/1703.03864 (ranks); Metz et al. 2022,
    https://arxiv.org/abs/2211.09760 (signs).

    >>> shape_differences(torch.tensor([0.1, -7.0, 0.0, 2.0]), "rank")
    tensor([ 0.3750, -0.8750,  0.0000,  0.6250])
    """
    if shaping == "none":
        return delta
    if shaping == "sign":
        return torch.sign(delta)
    rank = delta.abs().argsort().argsort().to(delta.dtype)
    return torch.sign(delta) * (rank + 0.5) / delta.shape[-1]
