r"""Low-rank adapters: a frozen matrix plus the product of two small trained matrices (LoRA).

.. math:: W' = W + \frac{\alpha}{r} B A, \qquad W \in R^{o \times i},\; B \in R^{o \times r},\; A \in R^{r \times i}

A is random and B is 0 at the start, so that W' = W before the first step. A convolution is a matrix (out, in x kernel).

References: Hu et al. 2021, https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params, Role

SCALE = 2.0  # alpha / r, as in the recipes of the authors
A, B = ".lora_a", ".lora_b"
"""Suffixes of the names of the two factors; the part before the suffix is the name of the frozen matrix."""


def adapter_roles(names: Sequence[str]) -> dict[str, Role]:
    """Role of each factor of the adapters of the matrices ``names``."""
    return {name + suffix: "matrix" for name in names for suffix in (A, B)}


def draw_adapters(matrices: Mapping[str, Tensor], rank: int, generator: torch.Generator) -> Params:
    """Initial factors: A uniform in ±1/√in, shape ``(rank, in)``, and B zero, shape ``(out, rank)``.

    Args:
        matrices: the frozen weights by name, shape ``(out, in)`` or ``(out, in, kernel, kernel)``.
        rank: r >= 1.
        generator: random generator of A.
    """
    factors: Params = {}
    for name, matrix in matrices.items():
        out, fan_in = len(matrix), matrix[0].numel()
        factors[name + A] = (2 * torch.rand(rank, fan_in, generator=generator) - 1) / math.sqrt(fan_in)
        factors[name + B] = torch.zeros(out, rank)
    return factors


def adapted(matrices: Mapping[str, Tensor], params: Params) -> Params:
    """The matrices plus their adapters, in the shapes of the matrices."""
    return {
        name: matrix + SCALE * (params[name + B] @ params[name + A]).reshape(matrix.shape)
        for name, matrix in matrices.items()
    }
