"""Stochastic rounding to bfloat16: values are rounded up or down with the probabilities that keep the mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.optim.precision import host_value
from lightning_lopt.rules.shared.blocks import BLOCK, DEVICE_BLOCK

LARGEST = torch.finfo(torch.bfloat16).max
COLUMNS = 4096
"""Length of a row of random numbers, which stays in the cache of a processor."""
_LOW, _HALF = 2**32 - 1, 2**16 - 1


def seeds_of(step: Tensor, count: int) -> list[Tensor]:
    """Seeds for ``count`` calls of :func:`rounded` in one step, 0-dim each.

    Args:
        step: number of the step, 0-dim, int64; the host does not read it.
        count: at most 65,536.
    """
    return list(_hashed(torch.arange(count, device=step.device) + step * 2**16).unbind())


def rounded(tensors: Sequence[Tensor], seed: Tensor, *, reads: bool = True) -> list[Tensor]:
    r"""``tensors`` in bfloat16, rounded up or down at random, so that the mean over seeds is the value itself.

    For x between the neighbours :math:`a \le x \le b` of bfloat16, the result is b with probability
    :math:`(x - a) / (b - a)` and a otherwise: 16 random bits are added to the bits of float32, and the lower half is
    cut off. Values of bfloat16, infinities and NaN do not change; finite values beyond the largest value of bfloat16,
    :math:`3.39 \cdot 10^{38}`, are set to that value.

    On any device, the random bits depend only on ``seed``, on the position of a tensor in the list and on the position
    of an entry; no generator is used. With the entries in a table of 4096 columns, the bits of entry (i, j) are the
    upper half of :math:`r_i c_j` modulo :math:`2^{32}`, with scrambled odd numbers r and c: one product for each entry.
    Entries are pairwise independent; the largest singular value of the noise is not above that of independent entries.

    Args:
        tensors: at least one, on one device, each with at least one entry; other types are converted to float32 first.
        seed: 0-dim, from :func:`seeds_of`.
        reads: whether to test first, on a CPU, that all values are finite, which saves passes over the values.

    References: Zamirai et al., 2020, "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192

    >>> third = torch.full((100_000,), 1 / 3)
    >>> (low,) = rounded([third], seeds_of(torch.tensor(0), 1)[0])
    >>> low.dtype, sorted(set(low.tolist())), round(low.double().mean().item(), 4)
    (torch.bfloat16, [0.33203125, 0.333984375], 0.3333)
    """
    values = [x.float() for x in tensors]
    width = min(COLUMNS, max(x.numel() for x in values))
    rows = [-(-x.numel() // width) for x in values]
    device = values[0].device
    words = _hashed(torch.arange(width + sum(rows), device=device) ^ seed.to(device))
    columns, *factors = torch.split((words - 2**31).int() | 1, [width, *rows])
    extremes = torch.stack([extreme for x in values for extreme in torch.aminmax(x)])
    is_ordinary = (
        reads and host_value((extremes.abs() <= LARGEST).all()) is True
    )  # no inf, no NaN, no number that would become inf

    def rounded_part(x: Tensor, factor: Tensor) -> Tensor:
        noise = (factor[:, None] * columns).bitwise_right_shift_(16).bitwise_and_(_HALF)
        noise = noise.view(-1)[: x.numel()].view(x.shape)
        if not is_ordinary:
            noise = noise * (x.abs() <= LARGEST)
        cut = noise.add_(x.view(torch.int32)).bitwise_and_(~_HALF).view(torch.float32)
        return (cut if is_ordinary else torch.where(x.isnan(), x, cut)).bfloat16()

    part = BLOCK if device.type == "cpu" else DEVICE_BLOCK  # multiples of COLUMNS
    results = []
    for x, factor in zip(values, factors, strict=True):
        if x.numel() <= part or not reads:
            results.append(rounded_part(x, factor))
            continue
        result = torch.empty(x.shape, dtype=torch.bfloat16, device=device)
        parts = zip(
            *(torch.split(flat, part) for flat in (x.reshape(-1), result.view(-1))),
            torch.split(factor, part // width),
            strict=True,
        )
        for x_part, result_part, factor_part in parts:
            result_part.copy_(rounded_part(x_part, factor_part))
        results.append(result)
    return results


def next_seed(seed: Tensor) -> Tensor:
    """A seed for further random bits, 0-dim."""
    return _hashed(seed + 1)


def _hashed(x: Tensor) -> Tensor:
    """A hash of integers: pseudo-random integers from 0 to 2^32 - 1, a bijection of the lower 32 bits.

    The constants are those of https://github.com/skeeto/hash-prospector.
    """
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = x & _LOW
        x = (x ^ (x >> shift)) * factor
    x = x & _LOW
    return x ^ (x >> 15)
