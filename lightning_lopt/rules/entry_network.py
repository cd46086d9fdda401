"""The network of Celo2: three small layers applied to every entry of a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_lopt.rules.features import FeatureInputs, cut

NORM_EPS = 1e-9
BLOCK = 2**15  # entries whose features are in memory at a time: on a CPU they stay in its cache
DEVICE_BLOCK = 2**22


def inverse_rms(mean_square: Tensor) -> Tensor:
    """What to multiply with for a root mean square of 1."""
    return torch.rsqrt(mean_square + NORM_EPS)


def matrix_mean_square(x: Tensor, ndim: int) -> Tensor:
    """Mean square over the matrix: the last two axes of a tensor of rank ``ndim``, the last for rank 1; kept as 1.

    ``x`` may have further axes in front, and size 1 where the tensor is constant.
    """
    rank = min(ndim, 2)
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(-rank, 0)), keepdim=True)
    return norm.square() / math.prod(x.shape[-rank:])


class EntryNetwork(nn.Module):
    r"""A perceptron of two hidden layers with ReLU; its inputs are the features of one entry, normalised.

    .. math:: o = W_2\, \mathrm{relu}(W_1\, \mathrm{relu}(W_0 x + b_0) + b_1) + b_2, \qquad
        x_i = f_i \,\big/ \sqrt{\mathrm{mean}(f_i^2) + 10^{-9}}

    The mean is over the matrix that the tensor is, each for itself where there are leading axes. The normaliser
    multiplies the weights instead of the features, and outer features pass the first layer before they are spread.
    Weights are stored (out, in).

    Args:
        decays: number of decays k, which gives 6 + 8 k inputs.
        hidden: width of both hidden layers.
    """

    def __init__(self, decays: int, hidden: int) -> None:
        super().__init__()
        self.decays = decays
        self.weight_0 = _weight(hidden, 6 + 8 * decays)
        self.bias_0 = nn.Parameter(torch.zeros(hidden))
        self.weight_1 = _weight(hidden, hidden)
        self.bias_1 = nn.Parameter(torch.zeros(hidden))
        self.weight_2 = _weight(3, hidden)  # direction, magnitude, and one that nothing reads
        self.bias_2 = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: FeatureInputs, outputs: int) -> Tensor:
        """The first ``outputs`` of the three outputs for every entry of a tensor of shape s: (outputs, *s)."""
        ndim, rows = inputs.param.ndim, len(inputs.param)
        spread = self._outer_layer(inputs)
        length = _rows_at_a_time(inputs.param)
        if length >= rows:
            features = inputs.inner_features()
            return self._layers(features, matrix_mean_square(features, ndim), spread, outputs)
        parts = [(start, min(length, rows - start)) for start in range(0, rows, length)]
        # The features are made twice: kept, they would take 4 (6 + 4 k) bytes per entry.
        powers = [matrix_mean_square(inputs.part(*part).inner_features(), ndim) * (part[1] / rows) for part in parts]
        power = torch.stack(powers).sum(0)
        done = []
        for part in parts:
            features, beside = inputs.part(*part).inner_features(), tuple(cut(x, ndim, *part) for x in spread)
            done.append(self._layers(features, power, beside, outputs))
        return torch.cat(done, 1)

    def _outer_layer(self, inputs: FeatureInputs) -> tuple[Tensor, ...]:
        """What outer features and bias add to the first layer, (hidden, *s) with size 1 where it is constant."""
        ndim, begin = inputs.param.ndim, 6 + 3 * self.decays
        bias = self.bias_0.to(inputs.param.dtype).reshape(-1, *[1] * ndim)
        sums = [torch.zeros_like(bias)] * len(inputs.outer)
        for index, features in enumerate(inputs.outer_features()):
            weight = self.weight_0[:, begin : begin + self.decays].to(features.dtype)
            normal = features * inverse_rms(matrix_mean_square(features, ndim))
            added = (weight @ normal.flatten(1)).reshape(-1, *features.shape[1:])
            sums[index % len(inputs.outer)] = sums[index % len(inputs.outer)] + added
            begin += self.decays
        return (*sums[:-1], sums[-1] + bias) if sums else (bias,)

    def _layers(self, features: Tensor, power: Tensor, spread: tuple[Tensor, ...], outputs: int) -> Tensor:
        """Inner features (F, *s), their mean squares, and what is added to the first layer: outputs (outputs, *s)."""
        shape, begin = features.shape[1:], 6 + 3 * self.decays
        weight = self.weight_0[:, :begin]
        if len(features) > begin:
            weight = torch.cat([weight, self.weight_0[:, -self.decays :]], 1)
        weight, scale = weight.to(features.dtype), inverse_rms(power)
        if scale.numel() == len(features):
            weight = weight * scale.reshape(1, -1)
        else:  # matrices with leading axes, each with its own scale
            features = features * scale
        x = (weight @ features.flatten(1)).reshape(-1, *shape)
        for added in spread:
            x = x.add_(added)
        x = torch.relu_(x).flatten(1)
        x = torch.relu_((self.weight_1.to(x.dtype) @ x).add_(self.bias_1.to(x.dtype)[:, None]))
        x = self.weight_2[:outputs].to(x.dtype) @ x + self.bias_2[:outputs].to(x.dtype)[:, None]
        return x.reshape(outputs, *shape)


def _weight(outputs: int, inputs: int) -> nn.Parameter:
    """Normal with standard deviation 1/√inputs, cut at two of them."""
    deviation = inputs**-0.5
    return nn.Parameter(
        nn.init.trunc_normal_(torch.empty(outputs, inputs), 0.0, deviation, -2 * deviation, 2 * deviation)
    )


def _rows_at_a_time(x: Tensor) -> int:
    """Entries along the first axis of a tensor of rank 1 or 2 that make up a block; all of a tensor that is small,
    has leading axes, or is compiled, where the compiler fuses what blocks keep in the cache."""
    if x.ndim > 2 or torch.compiler.is_compiling():
        return len(x)
    block = BLOCK if x.device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // math.prod(x.shape[1:])) if x.numel() > 2 * block else len(x)
