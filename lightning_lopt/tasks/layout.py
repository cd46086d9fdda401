"""The layout of the parameters of a task: name, shape, role and initial distribution of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params, Role

Law = Literal["uniform", "normal", "constant"]
SCHEMES = ("uniform", "lecun", "he")
"""Distributions of initial weights. ``"uniform"``: uniform in ±1/√fan_in, also for biases, as in PyTorch. ``"lecun"``:
normal of deviation 1/√fan_in, truncated at two deviations, biases 0, as in Flax and Haiku. ``"he"``: as ``"lecun"``,
times √2 if an activation follows."""

_TWO_SIGMA_SHARE = math.erf(math.sqrt(2.0))  # share of a normal distribution within two standard deviations


@dataclass(frozen=True)
class Initial:
    """The initial distribution of one parameter.

    Attributes:
        shape: shape of the parameter.
        role: role of the parameter.
        law: ``"uniform"`` in ±size, ``"normal"`` of deviation size truncated at two deviations, or ``"constant"``.
        size: scale of the distribution; for ``"constant"`` the value of the parameter.
    """

    shape: tuple[int, ...]
    role: Role
    law: Law
    size: float

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a value from ``generator`` alone."""
        if self.law == "constant":
            return torch.full(self.shape, self.size)
        centred = 2 * torch.rand(self.shape, generator=generator) - 1
        if self.law == "uniform":
            return centred * self.size
        return torch.erfinv(centred * _TWO_SIGMA_SHARE) * (self.size * math.sqrt(2.0))


class Layout:
    """Parameters in the order in which they are drawn.

    Args:
        scheme: name in :data:`SCHEMES`.
        scale: factor on initial weights and tables, not on biases and normalisations.

    Raises:
        ValueError: if the scheme is unknown.

    >>> layout = Layout()
    >>> layout.linear("head", 4, 3, role="head")
    >>> {name: tuple(param.shape) for name, param in layout.draw(torch.Generator()).items()}
    {'head.weight': (3, 4), 'head.bias': (3,)}
    """

    def __init__(self, scheme: str = "uniform", scale: float = 1.0) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}.")
        self.scheme = scheme
        self.scale = scale
        self.entries: dict[str, Initial] = {}

    @property
    def roles(self) -> dict[str, Role]:
        """Role of each parameter."""
        return {name: entry.role for name, entry in self.entries.items()}

    def draw(self, generator: torch.Generator) -> Params:
        """Draw all parameters from ``generator`` alone."""
        return {name: entry.draw(generator) for name, entry in self.entries.items()}

    def linear(self, name: str, fan_in: int, out: int, *, role: Role = "matrix", active: bool = False) -> None:
        """``name.weight`` (out, fan_in) and ``name.bias`` (out,); ``active`` says that an activation follows."""
        self._weight(f"{name}.weight", (out, fan_in), fan_in, role, active)
        self._bias(f"{name}.bias", out, fan_in)

    def conv(
        self,
        name: str,
        fan_in: int,
        out: int,
        kernel: int = 3,
        *,
        bias: bool = True,
        active: bool = True,
        role: Role = "matrix",
    ) -> None:
        """``name.weight`` (out, fan_in, kernel, kernel) and, if ``bias`` is true, ``name.bias`` (out,)."""
        self._weight(f"{name}.weight", (out, fan_in, kernel, kernel), fan_in * kernel**2, role, active)
        if bias:
            self._bias(f"{name}.bias", out, fan_in * kernel**2)

    def mlp(self, sizes: Sequence[int], prefix: str = "layers", *, last: Role = "head", norm: bool = False) -> None:
        """Layers ``prefix.0`` and so on, from ``sizes[0]`` inputs to ``sizes[-1]`` outputs, see :func:`.layers.mlp`."""
        for layer, (fan_in, out) in enumerate(pairwise(sizes)):
            is_last = layer == len(sizes) - 2
            self.linear(f"{prefix}.{layer}", fan_in, out, role=last if is_last else "matrix", active=not is_last)
            if norm and not is_last:
                self.norm(f"{prefix}.{layer}.norm", out)

    def norm(self, name: str, features: int) -> None:
        """Gain ``name.weight`` of ones and shift ``name.bias`` of zeros, both (features,)."""
        self.entries[f"{name}.weight"] = Initial((features,), "vector", "constant", 1.0)
        self.entries[f"{name}.bias"] = Initial((features,), "vector", "constant", 0.0)

    def table(self, name: str, rows: int, width: int) -> None:
        """An embedding ``name.weight`` (rows, width), normal of deviation scale/√width: rows have norm about scale."""
        self.entries[f"{name}.weight"] = Initial((rows, width), "embedding", "normal", self.scale / math.sqrt(width))

    def vector(self, name: str, size: int) -> None:
        """A free vector ``name`` (size,), normal of deviation scale/√size."""
        self.entries[name] = Initial((size,), "vector", "normal", self.scale / math.sqrt(size))

    def weight(self, name: str, shape: tuple[int, int]) -> None:
        """A matrix ``name`` (out, fan_in) without a bias."""
        self._weight(name, shape, shape[1], "matrix", False)

    def _weight(self, name: str, shape: tuple[int, ...], fan_in: int, role: Role, active: bool) -> None:
        gain = math.sqrt(2.0) if active and self.scheme == "he" else 1.0
        law: Law = "uniform" if self.scheme == "uniform" else "normal"
        self.entries[name] = Initial(shape, role, law, gain * self.scale / math.sqrt(fan_in))

    def _bias(self, name: str, size: int, fan_in: int) -> None:
        if self.scheme == "uniform":
            self.entries[name] = Initial((size,), "vector", "uniform", 1 / math.sqrt(fan_in))
        else:
            self.entries[name] = Initial((size,), "vector", "constant", 0.0)
