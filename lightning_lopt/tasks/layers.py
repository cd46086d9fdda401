"""Pieces of networks as functions of parameters by name: activations, linear layers, normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}
EPS = 1e-5
"""Number that normalisations add to a variance, as in PyTorch."""


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """``x`` of shape ``(..., fan_in)`` through ``name.weight`` and ``name.bias``."""
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def mlp(params: Params, prefix: str, x: Tensor, layers: int, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """``layers`` linear layers ``prefix.0`` and so on, with the activation between them.

    If ``prefix.i.norm`` is among the parameters, a layer normalisation precedes the activation.
    """
    for layer in range(layers):
        x = linear(params, f"{prefix}.{layer}", x)
        if layer < layers - 1:
            if f"{prefix}.{layer}.norm.weight" in params:
                x = layer_norm(params, f"{prefix}.{layer}.norm", x)
            x = activation(x)
    return x


# Each normalisation below has the fastest of three forms, which is the first one in this table. Time in ms, forward and
# backward under vmap over 16 particles (PyTorch 2.13, one thread of an x86 server CPU):
#
#   layer (16, 32, 32)                         group (32, 16, 8, 8)                batch (32, 16, 8, 8)
#   F.layer_norm, then gain and shift   1.5    F.layer_norm over each group  3.1   by hand           5.0
#   all by F.layer_norm                 1.9    F.group_norm                  3.3   F.batch_norm      5.5
#   by hand                             2.5    by hand                       5.9   torch.var_mean    7.2


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last axis, then gain and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * params[f"{name}.weight"] + params[f"{name}.bias"]


def group_norm(params: Params, name: str, x: Tensor, groups: int) -> Tensor:
    """Mean 0 and variance 1 over each group of channels of one image (B, C, H, W), then gain and shift."""
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, groups, channels // groups * height * width)
    normed = F.layer_norm(grouped, grouped.shape[-1:], eps=EPS).reshape(x.shape)
    return normed * params[f"{name}.weight"][:, None, None] + params[f"{name}.bias"][:, None, None]


def batch_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 for each channel over the given batch (B, C, H, W), then gain and shift.

    There are no running averages: batches for measuring are normalised by their own statistics, too.
    """
    centred = x - x.mean((0, 2, 3), keepdim=True)
    gain = torch.rsqrt(centred.square().mean((0, 2, 3), keepdim=True) + EPS) * params[f"{name}.weight"][:, None, None]
    return centred * gain + params[f"{name}.bias"][:, None, None]
