"""Quadratic bowls: tasks whose inner runs are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_number_options, check_numbers, check_size_options
from lightning_lopt.rules.base import Params, Role
from lightning_lopt.tasks._draw import choice, integer
from lightning_lopt.tasks.base import Batch, Split, Task, TaskFamily


class Quadratic(Task):
    r"""A bowl with known curvature, and noise of known size in its gradient.

    .. math:: L(x; z) = \tfrac12 \sum_i h_i x_i^2 + \sigma \sum_i z_i x_i, \qquad
        \nabla L = h x + \sigma z, \qquad z \sim \mathcal N(0, 1)

    The only parameter is ``"x"``, shape ``(D,)``. A batch is ``{"noise": z}``, drawn for each batch and zero in
    :meth:`full_batch`, whose loss is therefore the expected loss.

    Args:
        curvature: h, shape ``(D,)``, floating point; parameters and batches have its type.
        noise: σ >= 0, in units of the gradient.
        start: initial parameters of every inner run, a number or shape ``(D,)``; they are not random.
        name: name of the task.

    Raises:
        ValueError: if a shape is wrong or a number is out of range.

    Example:
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]), noise=0.1)
        >>> params, batch = bowl.init(torch.Generator()), bowl.full_batch("train")
        >>> gradient, loss, _ = bowl.gradient(params, batch)
        >>> gradient["x"], loss.item()
        (tensor([1., 4.]), 2.5)
    """

    def __init__(
        self, curvature: Tensor, noise: float = 0.0, start: float | Tensor = 1.0, name: str | None = None
    ) -> None:
        if curvature.ndim != 1 or len(curvature) == 0 or not curvature.is_floating_point():
            raise ValueError(
                f"curvature must be floating point of shape (D,), got {curvature.dtype} of {tuple(curvature.shape)}."
            )
        check_numbers(0.0, noise=noise)
        start = torch.as_tensor(start, dtype=curvature.dtype)
        if start.shape not in ((), curvature.shape):
            raise ValueError(f"start must be a number or of shape {tuple(curvature.shape)}, got {tuple(start.shape)}.")
        self.curvature = curvature
        self._curvature_copies = {curvature.device: curvature}
        self.noise = noise
        self.start = start.expand(curvature.shape).clone()
        self.name = name if name is not None else f"quadratic/d{len(curvature)}"
        self.roles: dict[str, Role] = {"x": "vector"}
        self.loss_scale = float(self.expected_loss(self.start.square()).abs()) or 1.0
        self.config: dict[str, Any] = {"curvature": curvature.tolist(), "noise": noise, "start": self.start.tolist()}

    def init(self, generator: torch.Generator) -> Params:
        return {"x": self.start.clone()}

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        shape = (*lead, len(self.curvature))
        return {"noise": torch.randn(shape, generator=generator, dtype=self.curvature.dtype)}

    def full_batch(self, split: Split) -> Batch:
        return {"noise": torch.zeros_like(self.curvature)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        x = params["x"]
        return self.expected_loss(x.square()) + self.noise * (batch["noise"] * x).sum()

    def expected_loss(self, square: Tensor) -> Tensor:
        """Expected loss, given the (expected) square of each coordinate, shape ``(D,)``."""
        return 0.5 * (self._curvature_on(square.device) * square).sum()

    def _curvature_on(self, device: torch.device) -> Tensor:
        """The curvature on a device; the copy is cached."""
        if device not in self._curvature_copies:
            self._curvature_copies[device] = self.curvature.to(device)
        return self._curvature_copies[device]

    def descend(self, lr: float | Tensor, steps: int) -> Tensor:
        r"""The parameters after T steps of gradient descent without noise: :math:`x_T = x_0 \prod_t (1 - \eta_t h)`.

        Args:
            lr: learning rate η, a number or, for a rate in each step, shape ``(steps,)``; the result is differentiable
                in ``lr``.
            steps: number T of steps, >= 0.

        Returns:
            The parameters, shape ``(D,)``; with noise, their mean.

        Raises:
            ValueError: if ``lr`` has another shape.
        """
        lr = self._rates(lr, steps)
        return self.start * (1 - lr[:, None] * self.curvature).prod(0)

    def expected_losses(self, lr: float | Tensor, steps: int) -> Tensor:
        r"""Expected loss before the first step and after each step, with noise: shape ``(steps + 1,)``.

        .. math:: \mathbb E\, x_{t+1}^2 = (1 - \eta_t h)^2\, \mathbb E\, x_t^2 + \eta_t^2 \sigma^2

        Entry t is the loss before step t, averaged over all noise. The result is differentiable in ``lr``, which
        is described in :meth:`descend`.
        """
        square = self.start.square()
        losses = [self.expected_loss(square)]
        for rate in self._rates(lr, steps):
            square = (1 - rate * self.curvature).square() * square + rate.square() * self.noise**2
            losses.append(self.expected_loss(square))
        return torch.stack(losses)

    def _rates(self, lr: float | Tensor, steps: int) -> Tensor:
        lr = torch.as_tensor(lr, dtype=self.curvature.dtype)
        if lr.shape not in ((), (steps,)):
            raise ValueError(f"lr must be a number or of shape ({steps},), got shape {tuple(lr.shape)}.")
        return lr.expand(steps)


class QuadraticFamily(TaskFamily):
    """Bowls of different dimension and condition number.

    The largest curvature is 1, the smallest is 1 / condition, and the other curvatures are log-uniform in between.
    Every coordinate starts at 1 or -1.

    Args:
        dims: numbers of dimensions to draw from.
        conditions: condition numbers to draw from, each >= 1.
        noises: sizes of the gradient noise to draw from, each >= 0.

    Raises:
        ValueError: if a list is empty or an entry is out of range.

    Example:
        >>> family = QuadraticFamily(dims=(4,), conditions=(10.0,), noises=(0.0,))
        >>> family.sample(torch.Generator().manual_seed(0)).curvature
        tensor([1.0000, 0.4927, 0.2322, 0.1000])
    """

    name = "quadratic"

    def __init__(
        self,
        dims: Sequence[int] = (2, 4, 8, 16),
        conditions: Sequence[float] = (1.0, 10.0, 100.0, 1000.0),
        noises: Sequence[float] = (0.0, 0.01, 0.1),
    ) -> None:
        self.dims = check_size_options(dims, "dims")
        self.conditions = check_number_options(conditions, "conditions", 1.0)
        self.noises = check_number_options(noises, "noises")

    @property
    def config(self) -> dict[str, Any]:
        lists = {"dims": self.dims, "conditions": self.conditions, "noises": self.noises}
        return {"name": self.name} | {key: list(values) for key, values in lists.items()}

    def sample(self, generator: torch.Generator) -> Quadratic:
        dim, condition = choice(self.dims, generator), choice(self.conditions, generator)
        noise = choice(self.noises, generator)
        exponents = torch.rand(dim, generator=generator)
        exponents[0] = 0.0  # the largest curvature, 1
        exponents[-1] = 1.0 if dim > 1 else 0.0
        start = 2.0 * torch.randint(2, (dim,), generator=generator) - 1
        tag = integer(0, 16**6, generator)
        name = f"{self.name}/d{dim}/k{condition:g}/n{noise:g}/{tag:06x}"
        return Quadratic(condition**-exponents, noise, start, name)
