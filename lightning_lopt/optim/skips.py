"""Steps that were skipped: a warning when they pile up, an end when nothing else happens, no wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.optim.checkpoint import COUNTERS

WARN_IN_A_ROW = 5
WARN_COUNT, WARN_SHARE = 10, 0.1
END_IN_A_ROW = 50
EVERY = 10  # steps between two looks at counters that lie on an accelerator


class Counts(NamedTuple):
    """Numbers of steps.

    Attributes:
        step: made.
        skipped: skipped, in all.
        in_a_row: skipped since the last one that was made.
    """

    step: int
    skipped: int
    in_a_row: int


class SkipWatch:
    """Reads the counters of an optimizer after each step, and later where reading them at once would wait."""

    def __init__(self) -> None:
        self._warned = False
        self._on_the_way: tuple[Tensor, Any] | None = None  # a copy to the host, and the event that ends it

    def look(self, own: Mapping[str, Any], calls: int, culprits: Callable[[], str]) -> None:
        """Warn or raise, if the counters that are known by now say so.

        Args:
            own: the first parameter group with ``step``, ``skipped_steps`` and ``skipped_in_a_row``, 0-dim.
            calls: number of steps so far, skipped ones among them.
            culprits: says which tensors were not finite in this step; it may wait for the device.

        Raises:
            RuntimeError: after ``END_IN_A_ROW`` skipped steps in a row.
        """
        counts = self._counts(own, calls)
        if counts is None:
            return
        if counts.in_a_row >= END_IN_A_ROW:
            raise RuntimeError(
                f"{counts.in_a_row} steps in a row were skipped, because {culprits()}; {counts.step} steps were made "
                "before. Parameters and state are those after the last good step: look for a division by zero, a "
                "logarithm of zero or an overflow in the model, and clip gradients."
            )
        piled = counts.skipped >= WARN_COUNT and counts.skipped > WARN_SHARE * (counts.step + counts.skipped)
        if (piled or counts.in_a_row >= WARN_IN_A_ROW) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{counts.skipped} of {counts.step + counts.skipped} steps were skipped, because {culprits()}; after "
                f"{END_IN_A_ROW} in a row training ends with an error.",
                stacklevel=7,
            )

    def _counts(self, own: Mapping[str, Any], calls: int) -> Counts | None:
        counters = [own[key] for key in COUNTERS]
        device = counters[0].device
        if torch.compiler.is_compiling() or device.type == "meta":
            return None
        if device.type == "cpu":
            return Counts(*(counter.tolist() for counter in counters))
        return self._copied(counters, calls) if device.type == "cuda" else None

    def _copied(self, counters: list[Tensor], calls: int) -> Counts | None:
        """The counters of some steps ago, if their copy has arrived."""
        arrived = None
        if self._on_the_way is not None and self._on_the_way[1].query():
            arrived, self._on_the_way = Counts(*self._on_the_way[0].tolist()), None
        if self._on_the_way is None and calls % EVERY == 0 and not torch.cuda.is_current_stream_capturing():
            copy = torch.stack(counters).to("cpu", non_blocking=True)
            self._on_the_way = copy, torch.cuda.current_stream(counters[0].device).record_event()
        return arrived


def not_finite(loss: Tensor | None, gradients: Mapping[str, Tensor], updates: Mapping[str, Tensor]) -> str:
    """A clause that says what of a step was not finite; it reads the tensors, so it waits for the device."""

    def names(tensors: Mapping[str, Tensor]) -> list[str]:
        return [name for name, x in tensors.items() if not bool(torch.isfinite(x).all())]

    if loss is not None and not bool(torch.isfinite(loss)):
        return f"the loss was {float(loss)}"
    for what, tensors in (("gradients", gradients), ("updates", updates)):
        culprits = names(tensors)
        if culprits:
            more = f" and {len(culprits) - 3} more" if len(culprits) > 3 else ""
            return f"{what} of {', '.join(map(repr, culprits[:3]))}{more} were not finite"
    return "a loss, gradients or updates were not finite"
