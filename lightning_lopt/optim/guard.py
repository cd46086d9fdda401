"""A guard over a learned rule: where the rule breaks its promise, training goes on with AdamW."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard_adamw import COPIES, SafeAdamW, WatchedRule, caught_up_rate, without_copies
from lightning_lopt.optim.guard_judge import MEMORY, Cause, Judge
from lightning_lopt.optim.guard_readings import ADAMW_RATE, Reading, Readings
from lightning_lopt.optim.precision import real, wide
from lightning_lopt.rules.base import UpdateRule

KEY = "guard"  # of what a checkpoint holds in its first parameter group
COPY_EVERY = 30  # steps; more than readings are late by
LEAST_REST, REST = 100, 0.1  # steps of AdamW before another try, and as a share of the horizon
_NUMBERS = ("calls", "kept_at", "candidate_at", "cause", "switched_at", "rate", "falls", "tries")


@dataclass(frozen=True)
class LossGuard:
    r"""Leaves a learned rule that breaks its promise, and goes on with AdamW.

    For each step u (times ``lr``), gradient g and parameters p it reads the loss L, the promise
    :math:`d = \langle g, u \rangle`, what AdamW would promise, :math:`r = 10^{-3} \lVert g \rVert_1`, and
    :math:`\ell = \mathrm{RMS}(u) / \max(\mathrm{RMS}(p_0), 0.03)`. With :math:`\bar L` the median of the last 7 losses,
    :math:`L_0` that of the first 3, :math:`L_*` the lowest :math:`\bar L`, :math:`\sigma` the noise (2.5 times the
    lower quartile of :math:`|\Delta L|` over 32 steps) and T the horizon, it leaves the rule where

    ============  ======================================================================================================
    not finite    u is not finite 3 times in a row while L and g are; or L or g are not 10 times in a row, later on
    uphill        :math:`\sum d > 0` over the run, and over about 10 steps more than half of :math:`\sum |d|`
    next to none  :math:`\sum |d| < 0.0003 \sum r` over T/50 steps (50 without T); or < 0.01 over T/10 while the loss
                  does not fall; before 0.7 T, since rules end with small steps
    too long      :math:`\ell > 0.3` in 5 of 7 steps while the loss does not fall; or > 1 while it falls by less than
                  0.05 of what was promised
    diverged      :math:`\bar L > L_0 + 6 \sigma + 3 r_0`
    behind        :math:`\bar L > L_* + 0.5\, (L_0 - L_*) + 6 \sigma` for T/20 steps, at least 20
    ============  ======================================================================================================

    "Falls" means :math:`\bar L < L_0 - 2 \sigma`. Only differences of losses enter, so a constant added to the loss
    changes nothing. Without a loss the first four remain, less what they say of the loss.

    At a switch the state of the rule is dropped, and the parameters go back to a copy from a time when the loss was at
    its best, unless the cause is a rule that makes no steps. Then AdamW trains at 0.001 (more, up to 1.25 times, for
    the steps that were lost), with a warm-up of 10 steps and a linear fall to 0 over the last fifth of the horizon. A
    warning says when and why; :attr:`LearnedOptimizer.guard_state` says it later. On an accelerator readings are looked
    at 10 to 19 steps late, so that no step waits.

    Loss that rises because the data change, as in continual learning, looks like a rule that falls behind.

    Memory: 8 bytes per float32 parameter, for two copies of it; after a switch AdamW's moments instead.

    Args:
        lr: of AdamW, > 0; reference promises are those of 0.001.
        retries: how many more times the rule may try, with a new state, after max(100, T/10) steps of AdamW. Only
            after a loss that rose or was lost: a rule that goes uphill, too far or nowhere will do so again.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> from lightning_lopt import LearnedOptimizer, LossGuard, SGDRule
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = LearnedOptimizer([weight], SGDRule(lr=1e-12), total_steps=100, guard=LossGuard(lr=0.01))
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     for _ in range(100):
        ...         optimizer.zero_grad()
        ...         loss = weight.square().sum()
        ...         loss.backward()
        ...         optimizer.step(loss)
        >>> optimizer.guard_state
        'switched at step 10, because its steps were next to nothing beside those of AdamW'
    """

    lr: float = ADAMW_RATE
    retries: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise ValueError(f"LossGuard's lr must be a number above 0, got {self.lr!r}.")
        if type(self.retries) is not int or self.retries < 0:
            raise ValueError(f"LossGuard's retries must be a whole number >= 0, got {self.retries!r}.")


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
        self._acting: UpdateRule | None = None

    @property
    def state(self) -> str:
        """In words: ``"active"``, or when and why training switched."""
        if self.cause is None:
            return "active"
        return f"switched at step {self.switched_at}, because {self.cause.sentence}"

    def acting(self, rule: UpdateRule) -> UpdateRule:
        """The rule that makes the steps, where ``rule`` is the learned one."""
        if isinstance(self._acting, SafeAdamW):
            return self._acting
        if not isinstance(self._acting, WatchedRule) or self._acting.rule is not rule:
            self._acting = WatchedRule(rule)
        return self._acting

    def asked(self, rule: UpdateRule) -> UpdateRule:
        """The rule that made the state: :meth:`acting` without what is wrapped around it."""
        return self._acting if isinstance(self._acting, SafeAdamW) else rule

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
        self, row: Tensor, members: Sequence[Member], state: dict[Tensor, Any], shared: dict[str, Tensor], total: Any
    ) -> None:
        """Take the reading of a step that was made, and switch where it is time to.

        Args:
            row: the :class:`Reading`, shape (7,).
            members: all parameters of the optimizer.
            state: of the optimizer.
            shared: likewise, what belongs to no parameter; emptied at a switch.
            total: the horizon, an ``int`` if it is known.
        """
        self.calls += 1
        horizon = total if isinstance(total, int) else None
        if self.cause is not None:
            if self._may_try_again(horizon):
                self._try_again(members, state, shared)
            return
        if self._pending is not None:
            self._readings.restore(self._pending, row.device)
            self._pending = None
        for reading in self._readings.take(row):
            cause = self._judge.judge(Reading(*reading), self.calls / horizon if horizon else None, horizon)
            if cause is not None:
                return self._switch(cause, members, state, shared, horizon)
        if self.calls - self.candidate_at >= COPY_EVERY:
            self._copy(members, state)

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
        acting = self._acting if isinstance(self._acting, SafeAdamW) else SafeAdamW(0.0, False)
        numbers = [self.calls, self.kept_at, self.candidate_at, self.cause or 0, self.switched_at]
        numbers += [acting.rate, acting.falls, self.tries, *self._judge.memory()]
        pending = self._readings.saved() if self._pending is None else self._pending
        return {"numbers": torch.tensor([float(x) for x in numbers], dtype=torch.float64), "pending": pending}

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


def resumed(guard: Guard | None, saved: Any) -> tuple[Guard | None, Any, dict[Any, dict[str, Tensor]]]:
    """The guard as a saved optimizer state has it, that state without what belongs to a guard, and the copies by key.

    Args:
        guard: the present one; ``None`` drops a saved one.
        saved: an optimizer state. What has no parameters and groups comes back unchanged, for others to refuse.

    Raises:
        ValueError: if the saved guard is damaged.
    """
    groups, states = (saved.get(key) if isinstance(saved, Mapping) else None for key in ("param_groups", "state"))
    if not (isinstance(groups, list) and groups and isinstance(groups[0], Mapping) and isinstance(states, Mapping)):
        return guard, saved, {}
    if not all(isinstance(state, Mapping) for state in states.values()):
        return guard, saved, {}
    first = {key: value for key, value in groups[0].items() if key != KEY}
    copies = {key: {k: state[k] for k in COPIES if k in state} for key, state in states.items()}
    plain = {key: without_copies(state) for key, state in states.items()}
    new = Guard(LossGuard() if guard is None else guard.settings)
    new.restore(groups[0].get(KEY))
    if guard is None and new.cause is not None:
        warnings.warn(
            f"this optimizer state is of a run with a guard, which {new.state}; without guard=True the rule begins "
            "anew.",
            stacklevel=5,
        )
        plain, first["shared"] = {}, {}
    return guard and new, {**saved, "state": plain, "param_groups": [first, *groups[1:]]}, copies if guard else {}


def with_copies(
    fitting: Mapping[str, Any], copies: Mapping[Any, Mapping[str, Tensor]], members: Sequence[Member]
) -> Any:
    """A saved state in the order of ``members``, with those of the copies that fit."""
    keys = [key for group in fitting["param_groups"] for key in group["params"]]
    states = dict(fitting["state"])
    for key, member in zip(keys, members, strict=True):
        kept = {k: x for k, x in copies.get(key, {}).items() if _fits(x, member)}
        if states.get(key) and len(kept) == len(COPIES):
            states[key] = {**states[key], **kept}
    return {**fitting, "state": states}


def _fits(copy: Any, member: Member) -> bool:
    return isinstance(copy, Tensor) and copy.is_floating_point() and copy.shape == real(member.param).shape
