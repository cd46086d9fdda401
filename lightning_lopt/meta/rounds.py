"""The rounds of a search during a run: their start times, their cost, and their results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_sizes
from lightning_lopt.meta.search import Search

LEAST_LOSS = 0.01  # smallest divisor of relative differences, as a share of the first loss


@dataclass(frozen=True)
class RoundSchedule:
    """The start times of rounds, spread evenly over the logarithm of the step, within a budget.

    The unit of cost is a training step. Early steps matter most in a run, and late steps give information that early
    steps do not give. No round ends after half of the run.

    Attributes:
        total_steps: steps of the run.
        share: largest cost of all rounds together, as a share of the run.
        window: steps that it takes to record the batches of a round.
        every: fewest steps between two rounds.
        first: step before which there is no round.
    """

    total_steps: int
    share: float
    window: int
    every: int
    first: int = 0

    def next_start(self, now: int, spent: float, cost: float) -> int | None:
        """First step, ``now`` or later, at which recording for a round of this cost may begin; ``None`` for never."""
        budget = self.share * self.total_steps
        if spent + cost > budget:
            return None
        last_start = max(1.0, self.total_steps / 2)
        unit = max(self.window, self.first)
        scaled_start = (1 + (last_start - self.first) / unit) ** (spent / budget)
        earliest = now + self.every if spent else now
        step = max(earliest, self.first + math.ceil((scaled_start - 1) * unit))
        return step if step + self.window <= last_start else None


class Rounds:
    """The rounds of one search within a budget. The unit of cost is a training step.

    Args:
        inner_steps: steps of a pilot, >= 1.
        held_out: batches for measuring a pilot, >= 1; each batch counts as a third of a step.
        max_share: largest share of the work of the run that all rounds may cost together, in (0, 1].
        every: fewest steps between two rounds, >= 1.

    Attributes:
        search: the search; ``None`` until :meth:`begin` is called.
        spent: cost of all rounds so far.
        next_start: step at which recording for the next round begins; ``None`` if there is no further round.
        first_loss: absolute loss of the first round; ``None`` before that round.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, inner_steps: int, held_out: int, max_share: float, every: int) -> None:
        check_sizes(every_n_steps=every, inner_steps=inner_steps, held_out=held_out)
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1], got {max_share!r}.")
        self.inner_steps, self.held_out, self.max_share, self.every = inner_steps, held_out, max_share, every
        self.reset()

    def reset(self) -> None:
        """Delete the state of the last run."""
        self.search: Search | None = None
        self.spent = 0.0
        self.next_start: int | None = 0
        self.first_loss: float | None = None
        self._saved_search: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is no further round."""
        return self.next_start is None

    @property
    def current_search(self) -> Search:
        """The search; :meth:`begin` must have been called."""
        assert self.search is not None
        return self.search

    @property
    def cost(self) -> float:
        """Cost of the next round."""
        return self.current_search.particles * (self.inner_steps + self.held_out / 3)

    def begin(self, search: Search) -> bool:
        """Begin with a search, and restore its saved state if one exists; return whether a saved state existed."""
        self.search = search
        saved, self._saved_search = self._saved_search, None
        if saved is not None:
            search.load_state_dict(saved)
        return saved is not None

    def plan(self, step: int, total_steps: Any) -> bool:
        """Choose the start of the next round, and return whether there is one.

        Args:
            step: steps of the run so far.
            total_steps: planned steps of the run; if this is not an int, there is no further round.
        """
        if not isinstance(total_steps, int):
            self.next_start = None
            return False
        first_step = int(total_steps * self.current_search.first_share)
        schedule = RoundSchedule(total_steps, self.max_share, self.inner_steps + self.held_out, self.every, first_step)
        self.next_start = schedule.next_start(step, self.spent, self.cost)
        return self.next_start is not None

    def tell(self, losses: Tensor) -> float:
        """Pass the losses of a round, shape ``(N,)``, to the search; return the lead of θ (:meth:`Search.tell`)."""
        cost, present_loss = self.cost, losses[self.current_search.theta_index]
        if self.first_loss is None and present_loss.isfinite():
            self.first_loss = float(present_loss.abs())
        ahead = self.current_search.tell(losses, LEAST_LOSS * (self.first_loss or 1.0))
        self.spent += cost
        return ahead

    def metrics(self, loss: Tensor, ahead: float) -> dict[str, float]:
        """Metrics to log after a round, from the loss of θ and the result of :meth:`tell`."""
        search = self.current_search
        changes = [search.theta[name] - start for name, start in search.start.items()]
        return {
            "rounds": float(search.rounds),
            "loss": float(loss),
            "ahead": -ahead,
            "evidence": search.evidence,
            "moved": float(torch.cat([change.flatten() for change in changes]).mean()),
        }

    def stop(self) -> None:
        """Make no further round."""
        self.next_start = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "search": self._saved_search if self.search is None else self.search.state_dict(),
            "spent": self.spent,
            "next": self.next_start,
            "first_loss": self.first_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`; to be called before :meth:`begin`."""
        self._saved_search = state["search"]
        self.spent, self.next_start, self.first_loss = state["spent"], state["next"], state["first_loss"]
