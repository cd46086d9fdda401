"""The numbers that a guard measures in each step, and their copy to the host without a wait for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.rates import multiplier

ADAMW_RATE = 1e-3  # default learning rate of torch.optim.AdamW
BLOCK = 10  # number of steps whose readings an accelerator sends together


class Reading(NamedTuple):
    r"""Numbers of one step; a number that overflowed is infinite or NaN.

    Attributes:
        loss: loss before the step.
        has_loss: 1.0 if the step had a loss, else 0.0.
        promise: :math:`\langle g, u \rangle`, the change of the loss by the step u to first order.
        reference: :math:`10^{-3} \lVert g \rVert_1`, the decrease of the loss by a first step of AdamW.
        length: :math:`\lVert u \rVert`.
        size: :math:`\lVert p \rVert`; 0 if it was not measured.
        entries: number of entries of p.
    """

    loss: float
    has_loss: float
    promise: float
    reference: float
    length: float
    size: float
    entries: float


def measured(
    members: Sequence[Member],
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    updates: Mapping[str, Tensor],
    loss: Tensor | None,
    with_size: bool = True,
) -> Tensor:
    """The :class:`Reading` of a step as a float32 tensor, shape (7,), on the device of the first parameter.

    Args:
        members: parameters that are stepped.
        params: values of the parameters, by name.
        grads: gradients, by name.
        updates: updates of the rule before the multiplication by ``lr``, by name, at least one; the reading describes
            the updates after the multiplication.
        loss: 0-dim, or ``None``.
        with_size: whether to measure the size of the parameters.
    """
    stepped = [member for member in members if member.name in updates]
    grad_list, update_list = ([tensors[member.name] for member in stepped] for tensors in (grads, updates))
    device = grad_list[0].device
    # A norm of order 1 is slow on the CPU.
    promises = _stacked([x.sum() for x in torch._foreach_mul(grad_list, update_list)], device)
    slopes = _stacked([x.sum() for x in torch._foreach_abs(grad_list)], device)
    lengths = _stacked(torch._foreach_norm(update_list, 2), device)
    rate = _rate([multiplier(member.group) for member in stepped], device)
    if rate is not None:
        promises, slopes, lengths = promises * rate, slopes * rate, lengths * rate
    size = slopes.new_zeros(())
    if with_size:
        size = torch.linalg.vector_norm(_stacked(torch._foreach_norm([params[m.name] for m in stepped], 2), device))
    numbers = (
        size if loss is None else loss.to(device, torch.float32),
        slopes.new_full((), float(loss is not None)),
        promises.sum(),
        ADAMW_RATE * slopes.sum(),
        torch.linalg.vector_norm(lengths),
        size,
        slopes.new_full((), float(sum(g.numel() for g in grad_list))),
    )
    return torch.stack(numbers)


def _stacked(numbers: Sequence[Tensor], device: torch.device) -> Tensor:
    """0-dim tensors as float32, shape (n,)."""
    are_float32 = all(x.dtype == torch.float32 and x.device == device for x in numbers)
    return torch.stack(list(numbers) if are_float32 else [x.to(device, torch.float32) for x in numbers])


def _rate(rates: Sequence[Any], device: torch.device) -> Any:
    """The factor on the updates: a number if all groups agree, else shape (n,); ``None`` for the factor 1."""
    first_rate = rates[0]
    if all(rate is first_rate or (isinstance(rate, float) and rate == first_rate) for rate in rates):
        return None if isinstance(first_rate, float) and first_rate == 1.0 else first_rate
    return torch.stack([torch.as_tensor(x, dtype=torch.float32, device=device).reshape(()) for x in rates])


class Readings:
    """Brings readings to the host: at once from a CPU, 10 to 19 steps later from an accelerator.

    An accelerator sends blocks of ten readings. A block is read ten steps after its copy began. By then the copy is
    complete, and the delay is the same in each run, so a seeded run repeats its decisions.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._block: tuple[Tensor, Any] | None = None  # a block on the host, and the event at the end of its copy

    def take(self, row: Tensor) -> list[Reading]:
        """Add the reading of a step; return the readings that have arrived since the last call, in order."""
        if row.device.type == "meta":
            return []
        if at_once(row.device):
            return [*self._drained(), Reading(*row.tolist())]
        self._rows.append(row)
        if len(self._rows) < BLOCK:
            return []
        readings = [] if self._block is None else _arrived(self._block)
        self._block, self._rows = _copied(torch.stack(self._rows)), []
        return readings

    def _drained(self) -> list[Reading]:
        """Readings that were on their way when a run on an accelerator was saved, for a run that resumes on a CPU."""
        readings = [] if self._block is None else _arrived(self._block)
        readings += [Reading(*row.tolist()) for row in self._rows]
        self._block, self._rows = None, []
        return readings

    def saved(self) -> Tensor:
        """Readings that have not been returned yet, shape (n, 7), n < 20."""
        blocks = [] if self._block is None else [torch.tensor(_arrived(self._block))]
        rows = [row.cpu() for row in self._rows]
        return torch.cat([*blocks, *[row[None] for row in rows], torch.zeros(0, len(Reading._fields))])

    def restore(self, saved: Tensor, device: torch.device) -> None:
        """Take over the readings of :meth:`saved`, on ``device``."""
        self._block = (saved[:BLOCK].cpu(), None) if len(saved) >= BLOCK else None
        rows = saved[BLOCK:] if len(saved) >= BLOCK else saved
        self._rows = list(rows.to(device).unbind())

    def __getstate__(self) -> dict[str, Any]:
        return {"_rows": self._rows, "_block": self._block and (torch.tensor(_arrived(self._block)), None)}


def at_once(device: torch.device) -> bool:
    """Whether a tensor on ``device`` can be read without a wait."""
    return device.type == "cpu"


def _copied(block: Tensor) -> tuple[Tensor, Any]:
    if block.device.type != "cuda":
        return block.cpu(), None
    copy = block.to("cpu", non_blocking=True)
    return copy, torch.cuda.current_stream(block.device).record_event()


def _arrived(block: tuple[Tensor, Any]) -> list[Reading]:
    values, event = block
    if event is not None:
        event.synchronize()  # the copy began at least ten steps ago
    return [Reading(*row) for row in values.tolist()]
