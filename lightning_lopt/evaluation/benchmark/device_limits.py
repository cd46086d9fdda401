"""Measured limits of a device: the rate of matrix products, and the memory bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from lightning_lopt.evaluation.step_cost import synchronised_clock

PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
SCALED_BYTES = {"cpu": 2**27, "cuda": 2**30}
REPEATS = 7
LONGEST = 1.0
"""A measurement is not repeated after this time (seconds): some processors take seconds for a product in bfloat16."""


@dataclass(frozen=True)
class DeviceLimits:
    """The best measured rates of a device, with the present number of threads.

    Attributes:
        products: operations per second in products of square matrices, by the name of their type (``"float32"``); a
            multiply-add counts as 2.
        bandwidth: bytes per second (read and written) when a large tensor is scaled in place.
    """

    products: dict[str, float]
    bandwidth: float

    def seconds_of_products(self, operations: Mapping[str, float]) -> float:
        """Least time in seconds for numbers of operations by type; a type that was not measured counts as float32.

        >>> DeviceLimits({"float32": 50e9, "bfloat16": 100e9}, 10e9).seconds_of_products({"float32": 1e9})
        0.02
        """
        return sum(count / self.products.get(dtype, self.products["float32"]) for dtype, count in operations.items())

    def seconds_of_bytes(self, byte_count: float) -> float:
        """Least time in seconds for reading or writing ``byte_count`` bytes.

        >>> DeviceLimits({"float32": 50e9}, 10e9).seconds_of_bytes(1e9)
        0.1
        """
        return byte_count / self.bandwidth


def measured_limits(device: torch.device, *, side: int | None = None, scaled: int | None = None) -> DeviceLimits:
    """The best rates of a few products in float32 and bfloat16, and of a few in-place passes over a large tensor.

    The passes are in place, because optimizers write to the memory that they have read. A copy to other memory would
    move half as many bytes again, because a processor reads memory before it overwrites the memory. The setting
    ``torch.backends.cuda.matmul.allow_tf32`` applies to the products in float32.

    Args:
        device: the device.
        side: rows of the matrices; by default a size that takes a fraction of a second on a CPU core, or fills a GPU.
        scaled: bytes of the tensor that is scaled; by default more than the size of a cache.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    side, scaled = side or PRODUCT_SIDE[kind], scaled or SCALED_BYTES[kind]
    clock = synchronised_clock(device)
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        left_factor, right_factor = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left_factor)
        seconds = _least_seconds(partial(torch.mm, left_factor, right_factor, out=out), clock)
        products[str(dtype).removeprefix("torch.")] = 2 * side**3 / seconds
    tensor = torch.ones(scaled // 4, device=device)
    return DeviceLimits(products, 2 * tensor.nbytes / _least_seconds(partial(tensor.mul_, 1.0), clock))


def _least_seconds(operation: Callable[[], object], clock: Callable[[], float]) -> float:
    """The least time of a few repetitions of an operation."""
    start = clock()
    durations: list[float] = []
    while not durations or (len(durations) < REPEATS and clock() - start < LONGEST):
        begin = clock()
        operation()
        durations.append(clock() - begin)
    return max(min(durations), 1e-9)
