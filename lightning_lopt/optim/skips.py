"""Watches skipped steps: warns of many, and raises an error after 50 in a row, without a wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.optim.checkpoint import COUNTERS
from lightning_lopt.wording import listed

WARN_IN_A_ROW = 5
WARN_COUNT, WARN_SHARE = 10, 0.1
END_IN_A_ROW = 50
EVERY = 10  # number of steps between two copies of the counters from an accelerator


class Counts(NamedTuple):
    """Numbers of steps.

    Attributes:
        step: steps that were made.
        skipped: all steps that were skipped.
        in_a_row: steps that were skipped since the last step that was made.
    """

    step: int
    skipped: int
    in_a_row: int


class SkipWatch:
    """Reads the counters of an optimizer after each step; it reads counters on an accelerator some steps later."""

    def __init__(self) -> None:
        self._warned = False
        self._pending_copy: tuple[Tensor, Any] | None = None  # a copy to the host, and the event at its end

    def look(self, group: Mapping[str, Any], calls: int, culprits: Callable[[], str]) -> None:
        """Warn or raise an error if the counters on the host show too many skipped steps.

        Args:
            group: the first parameter group with ``step``, ``skipped_steps`` and ``skipped_in_a_row``, 0-dim.
            calls: number of steps so far, including skipped steps.
            culprits: returns a clause that names the tensors that were not finite; it may wait for the device.

        Raises:
            RuntimeError: after ``END_IN_A_ROW`` skipped steps in a row.
        """
        counts = self._counts(group, calls)
        if counts is None:
            return
        if counts.in_a_row >= END_IN_A_ROW:
            raise RuntimeError(
                f"{counts.in_a_row} steps in a row were skipped, because {culprits()}; {counts.step} steps were made "
                "before. Parameters and state are those after the last finite step: look for a division by zero, a "
                "logarithm of zero or an overflow in the model, and clip gradients."
            )
        exceeds_share = counts.skipped >= WARN_COUNT and counts.skipped > WARN_SHARE * (counts.step + counts.skipped)
        if (exceeds_share or counts.in_a_row >= WARN_IN_A_ROW) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{counts.skipped} of {counts.step + counts.skipped} steps were skipped, because {culprits()}; after "
                f"{END_IN_A_ROW} in a row training ends with an error.",
                stacklevel=7,
            )

    def _counts(self, group: Mapping[str, Any], calls: int) -> Counts | None:
        counters = [group[key] for key in COUNTERS]
        device = counters[0].device
        if torch.compiler.is_compiling() or device.type == "meta":
            return None
        if device.type == "cpu":
            return Counts(*(counter.tolist() for counter in counters))
        return self._copied(counters, calls) if device.type == "cuda" else None

    def _copied(self, counters: list[Tensor], calls: int) -> Counts | None:
        """The counters of an earlier step, if their copy has arrived on the host."""
        arrived = None
        if self._pending_copy is not None and self._pending_copy[1].query():
            arrived, self._pending_copy = Counts(*self._pending_copy[0].tolist()), None
        if self._pending_copy is None and calls % EVERY == 0 and not torch.cuda.is_current_stream_capturing():
            copy = torch.stack(counters).to("cpu", non_blocking=True)
            self._pending_copy = copy, torch.cuda.current_stream(counters[0].device).record_event()
        return arrived


def not_finite(loss: Tensor | None, gradients: Mapping[str, Tensor], updates: Mapping[str, Tensor]) -> str:
    """A clause that names the tensors that were not finite in a step; reading the tensors waits for the device."""

    def names(tensors: Mapping[str, Tensor]) -> list[str]:
        return [name for name, x in tensors.items() if not bool(torch.isfinite(x).all())]

    if loss is not None and not bool(torch.isfinite(loss)):
        return f"the loss was {float(loss)}"
    for kind, tensors in (("gradients", gradients), ("updates", updates)):
        culprits = names(tensors)
        if culprits:
            return f"{kind} of {listed(culprits)} were not finite"
    return "a loss, gradients or updates were not finite"
