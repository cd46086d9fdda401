"""A guard in a run: it watches the rule, keeps copies of the parameters, and switches to AdamW."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard import LossGuard
from lightning_lopt.optim.guard_adamw import COPIES, SafeAdamW, caught_up_rate
from lightning_lopt.optim.guard_judge import MEMORY, Cause, Judge
from lightning_lopt.optim.guard_readings import Reading, Readings
from lightning_lopt.optim.precision import real, wide
from lightning_lopt.rules.base import UpdateRule

COPY_EVERY = 30  # steps; more than readings are late by
LEAST_REST, REST = 100, 0.1  # steps of AdamW before another try, and as a share of the horizon
_NUMBERS = ("calls", "kept_at", "candidate_at", "cause", "switched_at", "rate", "falls", "tries")


class Guard:
    """A :class:`LossGuard` in a run: what it knows so far, and which rule makes the steps.

    Attributes:
        settings: of the user.
        calls: steps so far, skipped ones too.
        cause: of the last switch, while AdamW trains; ``None`` while the rule does.
        switched_at: the value of ``calls`` at that switch.
    """

    def __init__(self, settings: LossGuard) -> None:
        self.settings = settings
        self.calls = 0
        self.cause: Cause | None = None
        self.switched_at = 0
        self.kept_at = self.candidate_at = 0  # steps after which the two copies were made
        self.tries = 0  # used up
        self._judge = Judge()
        self._readings = Readings()
        self._pending: Tensor | None = None  # from a checkpoint, until a device is known
        self._acting: SafeAdamW | None = None

    @property
    def state(self) -> str:
        """In words: ``"active"``, or when and why training switched."""
        if self.cause is None:
            return "active"
        return f"switched at step {self.switched_at}, because {self.cause.sentence}"

    def acting(self, rule: UpdateRule) -> UpdateRule:
        """The rule that makes the steps and made the state, where ``rule`` is the learned one."""
        return rule if self._acting is None else self._acting

    def prepare(self, members: Iterable[Member], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Copy those parameters that have no copies yet, where the rule trains."""
        if self.cause is not None:
            return
        for member in members:
            own = state[member.param]
            for key in COPIES:
                if key not in own:
                    own[key] = wide(member.param.detach()).clone()

    def look(
        self,
        measure: Callable[[bool], Tensor],
        members: Callable[[], Sequence[Member]],
        state: dict[Tensor, Any],
        shared: dict[str, Tensor],
        total: Any,
    ) -> None:
        """Take the reading of a step that was made, and switch where it is time to.

        Args:
            measure: makes the :class:`Reading`, shape (7,); it is told whether the size of the parameters is needed.
            members: gives all parameters of the optimizer.
            state: of the optimizer.
            shared: likewise, what belongs to no parameter; emptied at a switch.
            total: the horizon, an ``int`` if it is known.
        """
        self.calls += 1
        horizon = total if isinstance(total, int) else None
        if self.cause is not None:
            if self._may_try_again(horizon):
                self._try_again(members(), state, shared)
            return
        row = measure(self._judge.size == 0.0)
        if self._pending is not None:
            self._readings.restore(self._pending, row.device)
            self._pending = None
        for reading in self._readings.take(row):
            cause = self._judge.judge(Reading(*reading), self.calls / horizon if horizon else None, horizon)
            if cause is not None:
                return self._switch(cause, members(), state, shared, horizon)
        if self.calls - self.candidate_at >= COPY_EVERY:
            self._copy(members(), state)

    def _copy(self, members: Sequence[Member], state: dict[Tensor, Any]) -> None:
        """Keep the older copy if the loss was well after it, and make a new one."""
        kept, candidate = COPIES
        well = self._judge.is_well
        for member in members:
            own = state.get(member.param) or {}
            if candidate in own:
                if well:
                    own[kept], own[candidate] = own[candidate], own[kept]
                own[candidate].copy_(wide(member.param.detach()))
        self.kept_at = self.candidate_at if well else self.kept_at
        self.candidate_at = self.calls

    def _switch(
        self,
        cause: Cause,
        members: Sequence[Member],
        state: dict[Tensor, Any],
        shared: dict[str, Tensor],
        horizon: int | None,
    ) -> None:
        self.cause, self.switched_at = cause, self.calls
        back_to = self.kept_at if cause.is_of_the_point else self.calls
        for member in members:
            own = state.pop(member.param, {})
            if cause.is_of_the_point and COPIES[0] in own:
                real(member.param).copy_(own[COPIES[0]])
        shared.clear()
        self._acting = SafeAdamW(caught_up_rate(self.settings.lr, self.calls, back_to, horizon), horizon is not None)
        place = f" The parameters are those of step {back_to} again." if cause.is_of_the_point else ""
        warnings.warn(f"LossGuard: training {self.state}. It goes on with AdamW.{place}", stacklevel=7)

    def _may_try_again(self, horizon: int | None) -> bool:
        rest = max(LEAST_REST, REST * horizon if horizon else 0)
        left = self.cause is not None and self.cause.may_pass and self.tries < self.settings.retries
        return left and self.calls - self.switched_at >= rest

    def _try_again(self, members: Sequence[Member], state: dict[Tensor, Any], shared: dict[str, Tensor]) -> None:
        for member in members:
            state.pop(member.param, None)
        shared.clear()
        self.tries += 1
        self.cause, self._acting = None, None
        self._judge, self._readings = Judge(), Readings()
        self.kept_at = self.candidate_at = self.calls
        warnings.warn(f"LossGuard: the rule tries again at step {self.calls}.", stacklevel=7)

    def saved(self) -> dict[str, Tensor]:
        """For checkpoints: ``numbers``, float64, and ``pending``, the readings on their way."""
        acting = self._acting or SafeAdamW(0.0, False)
        own = self.calls, self.kept_at, self.candidate_at, self.cause or 0, self.switched_at
        numbers = [*map(float, (*own, acting.rate, acting.falls, self.tries)), *self._judge.memory()]
        pending = self._readings.saved() if self._pending is None else self._pending
        return {"numbers": torch.tensor(numbers, dtype=torch.float64), "pending": pending}

    def restore(self, saved: Any) -> None:
        """Go on with what :meth:`saved` gave, or begin anew with ``None``.

        Raises:
            ValueError: if it is damaged.
        """
        new = Guard(self.settings)
        if saved is not None:
            new._remember(checked(saved))
        self.__dict__.update(new.__dict__)

    def _remember(self, saved: Mapping[str, Tensor]) -> None:
        numbers = saved["numbers"].tolist()
        own = dict(zip(_NUMBERS, numbers, strict=False))
        self.calls, self.switched_at, self.tries = int(own["calls"]), int(own["switched_at"]), int(own["tries"])
        self.kept_at, self.candidate_at = int(own["kept_at"]), int(own["candidate_at"])
        if own["cause"]:
            self.cause = Cause(int(own["cause"]))
            self._acting = SafeAdamW(own["rate"], bool(own["falls"]))
        self._judge.remember(numbers[len(_NUMBERS) :])
        self._pending = saved["pending"]


def checked_guard(guard: Any) -> Guard | None:
    """From the argument of an optimizer.

    Raises:
        TypeError: if it is neither a ``bool`` nor a :class:`LossGuard`.
    """
    if isinstance(guard, LossGuard):
        return Guard(guard)
    if not isinstance(guard, bool):
        raise TypeError(f"guard must be True, False or a LossGuard, got {guard!r}; pass guard=LossGuard(lr=...).")
    return Guard(LossGuard()) if guard else None


def checked(saved: Any) -> Mapping[str, Tensor]:
    """What :meth:`Guard.saved` gave.

    Raises:
        ValueError: if it is something else.
    """
    shapes = {key: x.shape for key, x in saved.items() if isinstance(x, Tensor)} if isinstance(saved, Mapping) else {}
    fits = shapes.get("numbers") == (len(_NUMBERS) + MEMORY,) and len(shapes.get("pending", ())) == 2
    fits = fits and shapes["pending"][0] < 20 and shapes["pending"][1] == len(Reading._fields)
    if fits:
        own = dict(zip(_NUMBERS, saved["numbers"].tolist(), strict=False))
        whole = ("calls", "kept_at", "candidate_at", "switched_at", "tries")
        fits = all(math.isfinite(x) and x >= 0 for x in own.values()) and all(own[key].is_integer() for key in whole)
        fits = fits and own["cause"] in (0, *Cause)
    if not fits:
        raise ValueError("this optimizer state is damaged: its guard is; take the checkpoint as it was saved.")
    found: Mapping[str, Tensor] = saved
    return found
