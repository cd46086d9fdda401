"""The guard of a run: it watches the rule, keeps copies of the parameters, and switches to AdamW."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.copies import GUARD_COPIES
from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard import LossGuard
from lightning_lopt.optim.guard_adamw import SafeAdamW, caught_up_rate
from lightning_lopt.optim.guard_judge import MEMORY, Cause, Judge
from lightning_lopt.optim.guard_readings import Reading, Readings
from lightning_lopt.optim.precision import real, wide
from lightning_lopt.rules.base import UpdateRule

COPY_EVERY = 30  # number of steps between two copies; it is larger than the delay of the readings
LEAST_RETRY_DELAY = 100  # least number of steps of AdamW before the rule trains again
RETRY_DELAY = 0.1  # the same as a share of the horizon
_NUMBERS = ("calls", "kept_at", "candidate_at", "cause", "switched_at", "rate", "falls", "tries")


class Guard:
    """The state of a :class:`LossGuard` in a run, and the rule that makes the steps.

    Attributes:
        settings: settings of the user.
        calls: steps so far, including skipped ones.
        cause: cause of the last switch, while AdamW trains; ``None`` while the rule trains.
        switched_at: the value of ``calls`` at that switch.
    """

    def __init__(self, settings: LossGuard) -> None:
        self.settings = settings
        self.calls = 0
        self.cause: Cause | None = None
        self.switched_at = 0
        self.kept_at = self.candidate_at = 0  # steps after which the two copies were made
        self.tries = 0  # number of times that the rule has begun again
        self._judge = Judge()
        self._readings = Readings()
        self._pending: Tensor | None = None  # readings from a checkpoint, until the device is known
        self._acting: SafeAdamW | None = None

    @property
    def has_switched(self) -> bool:
        """Whether AdamW makes the steps now."""
        return self.cause is not None

    @property
    def state(self) -> str:
        """The text ``"active"``, or a text that says when and why training switched to AdamW."""
        if self.cause is None:
            return "active"
        return f"switched at step {self.switched_at}, because {self.cause.sentence}"

    def acting(self, rule: UpdateRule) -> UpdateRule:
        """The rule that makes the steps: AdamW after a switch, otherwise ``rule``, the learned one."""
        return rule if self._acting is None else self._acting

    def prepare(self, members: Iterable[Member], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Copy the parameters that have no copies yet, while the rule trains."""
        if self.cause is not None:
            return
        for member in members:
            tensor_state = state[member.param]
            for key in GUARD_COPIES:
                if key not in tensor_state:
                    tensor_state[key] = wide(member.param.detach()).clone()

    def look(
        self,
        measure: Callable[[bool], Tensor],
        members: Callable[[], Sequence[Member]],
        state: dict[Tensor, Any],
        shared: dict[str, Tensor],
        total: Any,
    ) -> None:
        """Take the reading of a step, and switch to AdamW, or back to the rule, if that is due.

        Args:
            measure: returns the :class:`Reading`, shape (7,); its argument is whether to measure the size of the
                parameters.
            members: returns all parameters of the optimizer.
            state: state of the parameters; deleted at a switch.
            shared: state that belongs to no single parameter; emptied at a switch.
            total: the horizon; an ``int`` if it is known.
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
        """Copy the parameters into the candidate; the previous candidate becomes the kept copy if the loss is close to
        its best."""
        kept_key, candidate_key = GUARD_COPIES
        is_well = self._judge.is_well
        for member in members:
            tensor_state = state.get(member.param) or {}
            if candidate_key in tensor_state:
                if is_well:
                    tensor_state[kept_key], tensor_state[candidate_key] = (
                        tensor_state[candidate_key],
                        tensor_state[kept_key],
                    )
                tensor_state[candidate_key].copy_(wide(member.param.detach()))
        self.kept_at = self.candidate_at if is_well else self.kept_at
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
        back_to = self.kept_at if cause.has_worsened_parameters else self.calls
        for member in members:
            tensor_state = state.pop(member.param, {})
            if cause.has_worsened_parameters and GUARD_COPIES[0] in tensor_state:
                real(member.param).copy_(tensor_state[GUARD_COPIES[0]])
        shared.clear()
        self._acting = SafeAdamW(caught_up_rate(self.settings.lr, self.calls, back_to, horizon), horizon is not None)
        restored_params = f" The parameters are those of step {back_to} again." if cause.has_worsened_parameters else ""
        warnings.warn(f"LossGuard: training {self.state}. It continues with AdamW.{restored_params}", stacklevel=7)

    def begin_at(self, members: Sequence[Member], state: dict[Tensor, Any]) -> None:
        """Begin the tests anew at the present parameters, which were restored after a rise of the validation loss."""
        self._judge, self._readings, self._pending = Judge(), Readings(), None
        for member in members:
            for key in GUARD_COPIES:
                if key in state.get(member.param, {}):
                    state[member.param][key].copy_(wide(member.param.detach()))
        self.kept_at = self.candidate_at = self.calls

    def _may_try_again(self, horizon: int | None) -> bool:
        calls_before_retry = max(LEAST_RETRY_DELAY, RETRY_DELAY * horizon if horizon else 0)
        tries_left = self.cause is not None and self.cause.is_retried and self.tries < self.settings.retries
        return tries_left and self.calls - self.switched_at >= calls_before_retry

    def _try_again(self, members: Sequence[Member], state: dict[Tensor, Any], shared: dict[str, Tensor]) -> None:
        for member in members:
            state.pop(member.param, None)
        shared.clear()
        self.tries += 1
        self.cause, self._acting = None, None
        self._judge, self._readings = Judge(), Readings()
        self.kept_at = self.candidate_at = self.calls
        warnings.warn(f"LossGuard: the rule trains again from step {self.calls} on.", stacklevel=7)

    def saved(self) -> dict[str, Tensor]:
        """State for checkpoints: ``numbers``, float64, and ``pending``, the readings that are on their way."""
        acting = self._acting or SafeAdamW(0.0, False)
        counters = self.calls, self.kept_at, self.candidate_at, self.cause or 0, self.switched_at
        numbers = [*map(float, (*counters, acting.rate, acting.falls, self.tries)), *self._judge.memory()]
        pending = self._readings.saved() if self._pending is None else self._pending
        return {"numbers": torch.tensor(numbers, dtype=torch.float64), "pending": pending}

    def restore(self, saved: Any) -> None:
        """Restore the state from :meth:`saved`, or begin anew with ``None``.

        Raises:
            ValueError: if the saved state is damaged.
        """
        restored = Guard(self.settings)
        if saved is not None:
            restored._load(checked(saved))
        self.__dict__.update(restored.__dict__)

    def _load(self, saved: Mapping[str, Tensor]) -> None:
        numbers = saved["numbers"].tolist()
        counters = dict(zip(_NUMBERS, numbers, strict=False))
        self.calls, self.switched_at, self.tries = (
            int(counters["calls"]),
            int(counters["switched_at"]),
            int(counters["tries"]),
        )
        self.kept_at, self.candidate_at = int(counters["kept_at"]), int(counters["candidate_at"])
        if counters["cause"]:
            self.cause = Cause(int(counters["cause"]))
            self._acting = SafeAdamW(counters["rate"], bool(counters["falls"]))
        self._judge.load_memory(numbers[len(_NUMBERS) :])
        self._pending = saved["pending"]


def checked_guard(guard: Any) -> Guard | None:
    """The guard that the argument ``guard`` of an optimizer asks for; ``None`` for ``False``.

    Raises:
        TypeError: if ``guard`` is neither a ``bool`` nor a :class:`LossGuard`.
    """
    if isinstance(guard, LossGuard):
        return Guard(guard)
    if not isinstance(guard, bool):
        raise TypeError(f"guard must be True, False or a LossGuard, got {guard!r}; pass guard=LossGuard(lr=...).")
    return Guard(LossGuard()) if guard else None


def checked(saved: Any) -> Mapping[str, Tensor]:
    """``saved``, after a check that it is a state from :meth:`Guard.saved`.

    Raises:
        ValueError: if ``saved`` is no such state.
    """
    shapes = {key: x.shape for key, x in saved.items() if isinstance(x, Tensor)} if isinstance(saved, Mapping) else {}
    fits = shapes.get("numbers") == (len(_NUMBERS) + MEMORY,) and len(shapes.get("pending", ())) == 2
    fits = fits and shapes["pending"][0] < 20 and shapes["pending"][1] == len(Reading._fields)
    if fits:
        counters = dict(zip(_NUMBERS, saved["numbers"].tolist(), strict=False))
        whole_numbers = ("calls", "kept_at", "candidate_at", "switched_at", "tries")
        fits = all(math.isfinite(x) and x >= 0 for x in counters.values()) and all(
            counters[key].is_integer() for key in whole_numbers
        )
        fits = fits and counters["cause"] in (0, *Cause)
    if not fits:
        raise ValueError("this optimizer state is damaged: its guard is invalid; use an undamaged copy.")
    checked_state: Mapping[str, Tensor] = saved
    return checked_state
