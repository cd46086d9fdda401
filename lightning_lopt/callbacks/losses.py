"""Computes the loss of each step from the losses of the backward passes before the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class MeanLoss:
    """Automatic optimization: the mean of the losses whose gradients were accumulated for a step."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def before_backward(self, loss: Tensor) -> None:
        """Add the loss of a batch, 0-dim and detached, in the unit of the module's loss."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1

    def after_backward(self) -> None:
        pass

    def on_zero_grad(self) -> None:
        """Drop the losses of gradients that were set to zero."""
        self._sum, self._count = None, 0

    def take(self, optimizer: Optimizer) -> Tensor | None:
        """The loss of the present step of ``optimizer``; the next window begins."""
        total, count = self._sum, self._count
        self.on_zero_grad()
        return None if total is None else total / count


class SummedLosses:
    """Manual optimization: for each optimizer, the sum of the losses that changed its gradients since its last step.

    Gradients of several backward passes add up, so a step lowers the sum of their losses. A backward pass *reaches* an
    optimizer if the gradient of one of its parameters is another tensor after the pass, or another version of the same
    tensor. A sum begins anew when no parameter of the optimizer has a gradient, as after ``zero_grad()``. Gradients
    that are set to zero in place (``set_to_none=False``) cannot be distinguished from other gradients. DDP with
    ``gradient_as_bucket_view=True`` writes all gradients in each pass; only ``toggle_optimizer`` then separates the
    optimizers.

    Args:
        optimizers: all optimizers of the fit, including those that get no loss.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._sums: dict[Optimizer, Tensor] = {}
        self._loss: Tensor | None = None
        self._marks_before: list[list[Any]] = []

    def before_backward(self, loss: Tensor) -> None:
        """Store the loss, 0-dim and detached, and the marks of the gradients before its backward pass."""
        self._loss = loss
        self._marks_before = [_marks(optimizer) for optimizer in self._optimizers]
        for optimizer, marks in zip(self._optimizers, self._marks_before, strict=True):
            if not any(marks):
                self._sums.pop(optimizer, None)

    def on_zero_grad(self) -> None:
        """Do nothing: :meth:`before_backward` notices missing gradients."""

    def after_backward(self) -> None:
        """Add the loss to the sums of the optimizers that the backward pass has reached."""
        if self._loss is None:
            return
        pairs = zip(self._optimizers, self._marks_before, strict=True)
        reached = [optimizer for optimizer, marks in pairs if _is_reached(optimizer, marks)]
        for optimizer in reached or self._optimizers:  # some strategies keep gradients outside of param.grad
            previous_sum = self._sums.get(optimizer)
            self._sums[optimizer] = self._loss if previous_sum is None else previous_sum + self._loss
        self._loss, self._marks_before = None, []

    def take(self, optimizer: Optimizer) -> Tensor | None:
        """The loss of the present step of ``optimizer``; its next sum begins."""
        return self._sums.pop(optimizer, None)


def _params(optimizer: Optimizer) -> Iterator[Tensor]:
    return (param for group in optimizer.param_groups for param in group["params"])


def _marks(optimizer: Optimizer) -> list[Any]:
    """The mark of each parameter: identity and version of its gradient, or ``None`` without a gradient."""
    return [_mark(param.grad) for param in _params(optimizer)]


def _is_reached(optimizer: Optimizer, marks_before: list[Any]) -> bool:
    """Whether the gradient of a parameter with ``requires_grad`` has changed."""
    pairs = zip(_params(optimizer), marks_before, strict=True)
    return any(param.requires_grad and _mark(param.grad) != mark for param, mark in pairs)


def _mark(grad: Tensor | None) -> tuple[int, int] | None:
    if grad is None:
        return None
    return id(grad), getattr(grad, "_local_tensor", grad)._version  # the version of a DTensor is that of its shard


def unscaled(loss: Tensor, scaler: Any) -> Tensor:
    """A loss, detached and in float32, divided by the factor of a gradient scaler without reading that factor."""
    value = loss.detach().float()
    return value if scaler is None else value / scaler.scale(torch.ones((), dtype=torch.float32, device=value.device))
