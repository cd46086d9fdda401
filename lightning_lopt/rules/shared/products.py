"""Products of wide matrices in bfloat16, on devices that multiply this type faster than float32."""

from __future__ import annotations

import torch
from torch import Tensor

WIDE = 256
"""Least length of the shortest side of both matrices for a product in bfloat16; for shorter sides, the conversion takes
longer than the product saves."""


def product(first: Tensor, *next_factors: Tensor) -> Tensor:
    """The product of all factors, from left to right. For wide float32 matrices, factors and results are rounded to
    bfloat16, and sums are computed in float32.

    Newton-Schulz iterations are usually computed in this way (Jordan et al. 2024, Muon). The rounding changes results
    by no more than the noise of a seed (entry 41 of ``examples/research/LOG.md``).

    Args:
        first: (..., n, m).
        next_factors: (..., m, k), (..., k, l) and so on, of the same type.

    Returns:
        (..., n, l) in the type of ``first``. For two factors, the rounding error is about 0.3 % of the norm if all
        sides are at least :data:`WIDE` and the device has units for bfloat16 (:func:`multiplies_bfloat16`), otherwise
        that of the type of ``first``.

    >>> product(torch.ones(2, 3), torch.ones(3, 2))
    tensor([[3., 3.],
            [3., 3.]])
    """
    is_rounded = bool(next_factors) and _is_rounded(first, *next_factors)
    result = _rounded(first) if is_rounded else first
    for factor in next_factors:
        result = result @ (_rounded(factor) if is_rounded else factor)
    return result.to(first.dtype)


def gram(x: Tensor) -> Tensor:
    """``product(x, x.mT)``, (..., n, n), for x (..., n, m), which is rounded only once.

    >>> gram(torch.tensor([[3.0, 4.0]]))
    tensor([[25.]])
    """
    rounded = rounded_if_wide(x)
    return (rounded @ rounded.mT).to(x.dtype)


def added_product(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """``beta * x + alpha * product(a, b)`` in the type of ``x``: a sum of float32 is not rounded to bfloat16.

    Args:
        x: (..., n, k).
        a: (..., n, m).
        b: (..., m, k).
        beta, alpha: factors.

    >>> added_product(torch.eye(2), torch.ones(2, 3), torch.ones(3, 2), beta=2.0)
    tensor([[5., 3.],
            [3., 5.]])
    """
    if not _is_rounded(a, b) and x.ndim == 2:
        return torch.addmm(x, a, b, beta=beta, alpha=alpha)
    return torch.add(beta * x, product(a, b), alpha=alpha)


def rounded_if_wide(x: Tensor) -> Tensor:
    """``x`` (..., n, m) in bfloat16 if products of it would be rounded, else ``x`` itself.

    >>> rounded_if_wide(torch.ones(2, 3)).dtype
    torch.float32
    """
    return _rounded(x) if _is_rounded(x) else x


def _rounded(x: Tensor) -> Tensor:
    """``x`` in bfloat16. A transpose is rounded before it is transposed, so that a traced step rounds a matrix and its
    transpose only once."""
    is_transposed = x.stride(-2) == 1 != x.stride(-1)
    return x.mT.bfloat16().mT if is_transposed else x.bfloat16()


def _is_rounded(*factors: Tensor) -> bool:
    x = factors[0]
    is_wide = min(min(factor.shape[-2:]) for factor in factors) >= WIDE
    return is_wide and x.dtype == torch.float32 and multiplies_bfloat16(x.device.type)


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX. The names in torch are not public; some versions may lack them."""
    features = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(is_supported is not None and is_supported() for is_supported in features)


_MULTIPLIES_BFLOAT16 = {"cpu": _cpu_multiplies_bfloat16()}  # by device type; torch.compile cannot query a processor


def multiplies_bfloat16(device_type: str) -> bool:
    """Whether a device has units for products of bfloat16: AVX512-BF16 or AMX on a CPU, tensor cores on a GPU."""
    if device_type not in _MULTIPLIES_BFLOAT16:
        is_cuda = device_type == "cuda"
        _MULTIPLIES_BFLOAT16[device_type] = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return _MULTIPLIES_BFLOAT16[device_type]
