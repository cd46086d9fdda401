"""A wrapper for losses that cannot be vmapped; under ``vmap`` it computes the loss of one particle after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch

LossOfBatch = Callable[[Params, Batch], Tensor]


def looped(loss: LossOfBatch, params: Params, batch: Batch) -> Tensor:
    """Compute ``loss(params, batch)``, with ``vmap`` as a Python loop and ``torch.func.grad`` as plain autograd.

    ``loss`` gets ordinary tensors, so it may call ``.item()``, branch on values and write in place. The rest of an
    inner step is vmapped. Autograd around ``vmap`` differentiates through the gradient as usual.

    Args:
        loss: differentiable in ``params`` by plain autograd, 0-dim.
        params: floating point.
        batch: tensors without gradients.
    """
    if not torch._C._are_functorch_transforms_active():
        return loss(params, batch)
    names = list(params), list(batch)
    output: tuple[Tensor, ...] = _Looped.apply(loss, names, torch.is_grad_enabled(), *params.values(), *batch.values())  # type: ignore[no-untyped-call]
    return output[0]


class _Looped(torch.autograd.Function):
    """The loss and its gradients for one particle or, in :meth:`vmap`, for several particles."""

    @staticmethod
    def forward(loss: LossOfBatch, names: tuple[list[str], list[str]], with_grads: bool, *tensors: Tensor) -> Any:
        return _loss_and_grads(loss, names, with_grads, [tensor.detach() for tensor in tensors])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.constants = len(inputs[1][1])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
        return None, None, None, *(grad_loss * grad for grad in ctx.saved_tensors), *[None] * ctx.constants

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        loss: LossOfBatch,
        names: tuple[list[str], list[str]],
        with_grads: bool,
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        nested = torch._C._are_functorch_transforms_active()
        outputs = []
        for index in range(info.batch_size):
            particle = [t if dim is None else t.select(dim, index) for t, dim in zip(tensors, in_dims[3:], strict=True)]
            if nested:
                outputs.append(_Looped.apply(loss, names, with_grads, *particle))  # type: ignore[no-untyped-call]
            else:
                outputs.append(_loss_and_grads(loss, names, with_grads, particle))
        stacked = tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))
        return stacked, (0,) * len(stacked)


def _loss_and_grads(
    loss: LossOfBatch, names: tuple[list[str], list[str]], with_grads: bool, tensors: list[Tensor]
) -> tuple[Tensor, ...]:
    trained = tensors[: len(names[0])]
    batch = dict(zip(names[1], tensors[len(trained) :], strict=True))
    if not with_grads:
        with torch.no_grad():
            return (loss(dict(zip(names[0], trained, strict=True)), batch),)
    outer_graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained)
    with torch.enable_grad():
        # views keep the connection to an outer graph, and are separate leaves for autograd.grad
        leaves = [t.view_as(t) if outer_graph else t.detach().requires_grad_() for t in trained]
        value = loss(dict(zip(names[0], leaves, strict=True)), batch)
        grads = torch.autograd.grad(value, leaves, create_graph=outer_graph, materialize_grads=True)
    return (value if outer_graph else value.detach(), *grads)
