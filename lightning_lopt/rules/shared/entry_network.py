"""The network of the per-entry rules: three small layers applied to every entry of a tensor.

:func:`apply_plainly` is the reference implementation; rules use
:func:`~lightning_lopt.rules.shared.fast_entry_network.apply_network`, which is tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE
from lightning_lopt.rules.shared.features import EntryFeatures, computed_groups


def matrix_norm(x: Tensor, ndim: int) -> Tensor:
    """Euclidean norm over the last two axes of a tensor of rank ``ndim`` (the last for rank 1), which become size 1.

    ``x`` may have further axes in front of these ``ndim``.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(-min(ndim, 2), 0)), keepdim=True)
    return norm


def inverse_rms(norm: Tensor, shape: torch.Size, eps: float) -> Tensor:
    r""":math:`1 / \sqrt{\mathrm{mean}(x^2) + \epsilon}` from the :func:`matrix_norm` of x; ``shape`` is that of x."""
    entries = math.prod(shape[-2:])
    return norm.square().add_(entries * eps).rsqrt_() * math.sqrt(entries)


class Weights(NamedTuple):
    """θ of an :class:`EntryNetwork` in the type of the arithmetic."""

    inner_0: Tensor
    outer_0: Tensor | None
    bias_0: Tensor
    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor
    bias_2: Tensor

    def to(self, dtype: torch.dtype) -> Weights:
        """The same weights in the type ``dtype``."""
        return Weights(*(None if x is None else x.to(dtype) for x in self))  # type: ignore[arg-type]


class EntryNetwork(nn.Module):
    r"""A perceptron of two hidden layers with ReLU; its inputs are the features of one entry, normalised.

    .. math:: o = W_2\, \mathrm{relu}(W_1\, \mathrm{relu}(W_0 x + b_0) + b_1) + b_2, \qquad
        x_i = f_i \,\big/ \sqrt{\mathrm{mean}(f_i^2) + \epsilon}

    The mean is over the matrix in the last two axes, for each index of the leading axes. The normaliser multiplies the
    weights instead of the features. Outer features (constant along rows or columns) pass the first layer before they
    are expanded to all entries. Constants, which have the same value for all entries of a tensor, are not normalised,
    and their layer adds to the bias.

    Args:
        inner: number of inner features.
        outer: number of outer features, a multiple of 4, or 0.
        constant: number of constants.
        hidden: width of both hidden layers.
        outputs: number of outputs.
        copies: number K of networks, the first axis of all parameters; ``None`` for a single network without that axis.

    Attributes:
        inner_0: first layer for the inner features, in their order, (hidden, inner).
        outer_0: first layer for rows, their inverse roots, columns, and their inverse roots, (hidden, outer).
        constant_0: first layer for the constants, (hidden, constant).
        weight_1: (hidden, hidden).
        weight_2: (outputs, hidden); the outputs of most rules are direction, magnitude, and an unused output.
        bias_0, bias_1, bias_2: (hidden), (hidden), (outputs).

    Example:
        >>> sum(x.numel() for x in EntryNetwork(inner=3, outer=0, hidden=4).parameters())  # 12 + 4 + 16 + 4 + 12 + 3
        51
    """

    def __init__(
        self, inner: int, outer: int, hidden: int, outputs: int = 3, constant: int = 0, copies: int | None = None
    ) -> None:
        super().__init__()
        inputs, leading = inner + outer + constant, () if copies is None else (copies,)
        self.inner_0 = initial_weight(*leading, hidden, inner, fan_in=inputs)
        self.outer_0 = initial_weight(*leading, hidden, outer, fan_in=inputs) if outer else None
        self.constant_0 = initial_weight(*leading, hidden, constant, fan_in=inputs) if constant else None
        self.bias_0 = nn.Parameter(torch.zeros(*leading, hidden, dtype=THETA_DTYPE))
        self.weight_1 = initial_weight(*leading, hidden, hidden, fan_in=hidden)
        self.bias_1 = nn.Parameter(torch.zeros(*leading, hidden, dtype=THETA_DTYPE))
        self.weight_2 = initial_weight(*leading, outputs, hidden, fan_in=hidden)
        self.bias_2 = nn.Parameter(torch.zeros(*leading, outputs, dtype=THETA_DTYPE))

    def weights(self, dtype: torch.dtype, outputs: int, constants: Tensor | None = None) -> Weights:
        """θ in the type ``dtype``, with the first ``outputs`` outputs, for the constants of a tensor, (constant,).

        Biases have the shape of columns.
        """
        inner_0, weight_1, weight_2 = (x.to(dtype) for x in (self.inner_0, self.weight_1, self.weight_2[:outputs]))
        outer_0 = None if self.outer_0 is None else self.outer_0.to(dtype)
        bias_0, bias_1, bias_2 = (x.to(dtype)[:, None] for x in (self.bias_0, self.bias_1, self.bias_2[:outputs]))
        if self.constant_0 is not None:
            assert constants is not None
            bias_0 = bias_0 + self.constant_0.to(dtype) @ constants.to(dtype)[:, None]
        return Weights(inner_0, outer_0, bias_0, weight_1, bias_1, weight_2, bias_2)

    def mixtures(self, shares: Tensor, outputs: int) -> dict[str, Tensor]:
        """Weighted means of the K copies, without constants: one network for each of n rows of ``shares``.

        Args:
            shares: weight of each copy, (n, K); this method divides it by K.
            outputs: number of outputs to use.

        Returns:
            the fields of :class:`Weights`, with a first axis n.
        """
        shares = shares / shares.shape[-1]
        banks = {
            "inner_0": self.inner_0,
            "bias_0": self.bias_0[..., None],
            "weight_1": self.weight_1,
            "bias_1": self.bias_1[..., None],
            "weight_2": self.weight_2[:, :outputs],
            "bias_2": self.bias_2[:, :outputs, None],
        }
        if self.outer_0 is not None:
            banks["outer_0"] = self.outer_0
        return {name: (shares @ bank.flatten(1)).reshape(-1, *bank.shape[1:]) for name, bank in banks.items()}


def apply_plainly(weights: Weights, inputs: EntryFeatures, outer: Sequence[Tensor], eps: float) -> Tensor:
    """Outputs of the network for every entry of a tensor, by the equation of :class:`EntryNetwork`.

    All features are expanded to all entries and are in memory at once, 4 bytes each per entry.

    Args:
        weights: result of :meth:`EntryNetwork.weights`.
        inputs: inner features of a tensor of shape s, rank >= 1.
        outer: groups of outer features, (f, *s) with size 1 along axes on which they are constant.
        eps: ε.

    Returns:
        shape ``(outputs, *s)``.
    """
    shape = inputs.param.shape[1:]
    features = torch.cat([group.expand(-1, *shape) for group in (*computed_groups(inputs.features()), *outer)])
    features = features * inverse_rms(matrix_norm(features, len(shape)), shape, eps)
    weight_0 = weights.inner_0 if weights.outer_0 is None else torch.cat([weights.inner_0, weights.outer_0], 1)
    hidden = torch.relu(weight_0 @ features.flatten(1) + weights.bias_0)
    hidden = torch.relu(weights.weight_1 @ hidden + weights.bias_1)
    return (weights.weight_2 @ hidden + weights.bias_2).reshape(-1, *shape)


def initial_weight(*shape: int, fan_in: int) -> nn.Parameter:
    """Normal numbers with standard deviation 1/√fan_in, truncated at two standard deviations."""
    limit = 2 * fan_in**-0.5
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape, dtype=THETA_DTYPE), 0.0, limit / 2, -limit, limit))
