"""Random numbers inside a user's loss as a pure function of a seed, so they can be repeated, shared and vmapped."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195), as signed 64-bit integers
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global random states of torch (CPU), NumPy and Python by ``seed``, and restore them at the end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def seeded_uniform(seed: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Numbers in (0, 1), float32, that depend only on seed, stream and position; vmap-able over ``seed``.

    Args:
        seed: int64, 0-dim.
        stream: number of the stream; different streams of one seed are independent.
        shape: shape of the result.
    """
    position = torch.arange(math.prod(shape), device=seed.device).reshape(tuple(shape))
    step = (stream * _GOLDEN + 2**63) % 2**64 - 2**63
    stream_seed = _scramble(_scramble(seed) + step)
    return ((_scramble(stream_seed + position * _GOLDEN) >> 40 & 0xFFFFFF) + 0.5) * 2.0**-24


def seeded_normal(seed: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers by the transform of Box and Muller; arguments as in :func:`seeded_uniform`."""
    radius, angle = seeded_uniform(seed, stream, (2, *shape)).unbind(0)
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)


def _scramble(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; products wrap around at 64 bits."""
    for shift, factor in _MIX:
        x = (x ^ (x >> shift & 2 ** (64 - shift) - 1)) * factor
    return x ^ (x >> 31 & 2**33 - 1)


class SeededRandom(TorchFunctionMode):
    """Inside this context, torch's common random functions draw from a seed and do not use global state.

    Dropout (of all dimensions, and in scaled_dot_product_attention), ``rand``, ``randn``, their ``_like`` variants and
    ``bernoulli`` are replaced. Each call uses a separate stream; streams are numbered in the order of the calls. Other
    random functions, and the draws inside ``nn.MultiheadAttention``, are not replaced, and raise under ``vmap``.

    Args:
        seed: int64, 0-dim; ``None`` turns dropout off, and uses seed 0 for other draws.
    """

    def __init__(self, seed: Tensor | None) -> None:
        super().__init__()
        self.dropout = seed is not None
        self.seed = torch.zeros((), dtype=torch.int64) if seed is None else seed
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is None or kwargs.get("generator") is not None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        return replacement(self, *args, **kwargs)

    def _draw(self, sampler: Callable[..., Tensor], shape: Sequence[int], like: Tensor | None, kwargs: Any) -> Tensor:
        stream, self.calls = self.calls, self.calls + 1
        dtype = kwargs.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
        device = kwargs.get("device") or (self.seed.device if like is None else like.device)
        return sampler(self.seed.to(device), stream, shape).to(dtype)

    def _dropout(self, x: Tensor, mask_shape: Sequence[int], p: float) -> Tensor:
        mask = self._draw(seeded_uniform, mask_shape, None, {"dtype": torch.float32, "device": x.device}) >= p
        return torch.where(mask, x / max(1 - p, 1e-30), 0.0)


def _shape_of(size: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[int]:
    size = size or (kwargs["size"],)
    return size if all(isinstance(entry, int) for entry in size) else size[0]


def _sized(sampler: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def replacement(mode: SeededRandom, *size: Any, **kwargs: Any) -> Tensor:
        return mode._draw(sampler, _shape_of(size, kwargs), None, kwargs)

    return replacement


def _like(sampler: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def replacement(mode: SeededRandom, input: Tensor, **kwargs: Any) -> Tensor:
        return mode._draw(sampler, input.shape, input, kwargs)

    return replacement


def _bernoulli(mode: SeededRandom, input: Tensor, p: float | None = None, **kwargs: Any) -> Tensor:
    probability = input if p is None else torch.full_like(input, p)
    return (mode._draw(seeded_uniform, input.shape, None, {"device": input.device}) < probability).to(input.dtype)


def _dropout(spatial: int | None) -> Callable[..., Tensor]:
    """Dropout of entries, or of whole channels in front of ``spatial`` axes."""

    def replacement(
        mode: SeededRandom, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        if not mode.dropout:
            mode.calls += 1
            return input
        masked_dims = input.ndim if spatial is None else input.ndim - spatial
        return mode._dropout(input, (*input.shape[:masked_dims], *[1] * (input.ndim - masked_dims)), p)

    return replacement


def _attention(
    mode: SeededRandom,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Scaled dot-product attention with dropout of its weights; without dropout, torch's function is called."""
    if kwargs.get("enable_gqa"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
    if dropout_p == 0 or not mode.dropout:
        mode.calls += dropout_p > 0
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, **kwargs)
    identity = torch.eye(key.shape[-2], dtype=query.dtype, device=query.device)
    # with the identity as values, the outputs are the attention weights
    weights = F.scaled_dot_product_attention(query, key, identity, attn_mask, 0.0, is_causal, **kwargs)
    return mode._dropout(weights, weights.shape, dropout_p) @ value


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.rand: _sized(seeded_uniform),
    torch.randn: _sized(seeded_normal),
    torch.rand_like: _like(seeded_uniform),
    torch.randn_like: _like(seeded_normal),
    torch.bernoulli: _bernoulli,
    F.dropout: _dropout(None),
    F.dropout1d: _dropout(1),
    F.dropout2d: _dropout(2),
    F.dropout3d: _dropout(3),
    F.scaled_dot_product_attention: _attention,
}
