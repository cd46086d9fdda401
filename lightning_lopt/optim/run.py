"""The state of a run in the optimizer: counters, horizon, and the context of the next step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_lopt.optim import horizon
from lightning_lopt.optim.checkpoint import COUNTERS
from lightning_lopt.optim.groups import Labels, Member, members_of
from lightning_lopt.optim.guard_run import Guard
from lightning_lopt.optim.inputs import RunState, StepSignals, checked_epochs, checked_horizon
from lightning_lopt.optim.precision import Flag, all_finite
from lightning_lopt.rules.base import StepContext, UpdateRule
from lightning_lopt.tracing import tensors_of

MOST_NUMBERS = 8  # tensors of numbers that are kept; a run has two, the horizon and the epochs, unless its plan changes


class RunOptimizer(torch.optim.Optimizer):
    """The part of :class:`~lightning_lopt.LearnedOptimizer` that holds the state of its run.

    The state of a parameter is ``state[param]``. All other entries of a checkpoint are in the first parameter group:
    the counters ``step``, ``skipped_steps`` and ``skipped_in_a_row`` (0-dim, int64), the ``shared`` state of the rule
    and, after a change of the horizon, ``schedule``.

    Attributes:
        rule: the update rule.
        rule_label: name of the rule in messages, as the user wrote it.
        labels: names and roles of parameters that may join later.
        epochs_given: whether the user gave the number of epochs, which then wins over the number of a training loop.
        _normalisation: layers with running statistics, if the optimizer was made from a module.
        signals: inputs of a step that do not come through its arguments, such as the loss; shared with wrappers.
    """

    rule: UpdateRule
    rule_label: str
    labels: Labels
    signals: StepSignals
    epochs_given: bool
    _run: RunState
    _guard: Guard | None
    _theta: list[Tensor]
    _normalisation: list[nn.Module]
    _numbers: dict[tuple[float, torch.device], Tensor]

    @property
    def total_steps(self) -> int | Callable[[], int] | None:
        """The planned number of steps, or a function that gives it at the first step."""
        return self._run.total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | Callable[[], int] | None) -> None:
        self._run.total_steps = total_steps

    @property
    def epochs(self) -> float | None:
        """The planned number of passes over the training data; ``None`` if it is unknown."""
        return self._run.epochs

    @epochs.setter
    def epochs(self, epochs: float | None) -> None:
        self._run.epochs = checked_epochs(epochs)

    def plan_epochs(self, epochs: float | None) -> None:
        """Take over the number of epochs of a training loop, if it is known, unless the user gave another."""
        if epochs is not None and not self.epochs_given:
            self.epochs = epochs

    @property
    def calls(self) -> int:
        """Number of steps, including skipped steps; reading it does not wait for the device."""
        return self._run.calls

    @property
    def steps_made(self) -> int:
        """Number of steps without skipped steps; reading it waits for the device."""
        return int(self.param_groups[0]["step"])

    @property
    def skipped_steps(self) -> int:
        """Number of steps that were skipped because the loss, a gradient or an update was not finite; reading it waits
        for the device."""
        return int(self.param_groups[0]["skipped_steps"])

    @property
    def guard_state(self) -> str:
        """State of :class:`~lightning_lopt.LossGuard`: ``"off"``, ``"active"``, or when and why training switched."""
        return "off" if self._guard is None else self._guard.state

    @property
    def guard_switched(self) -> bool:
        """Whether a :class:`~lightning_lopt.LossGuard` has switched to AdamW and has not switched back."""
        return self._guard is not None and self._guard.has_switched

    @property
    def _acting(self) -> UpdateRule:
        """The rule that makes the steps: the rule of the optimizer, or the rule that a guard has switched to."""
        return self.rule if self._guard is None else self._guard.acting(self.rule)

    def _members(self) -> list[Member]:
        return list(members_of(self.param_groups, self.labels))

    def _move_to_device_of(self, members: Sequence[Member]) -> torch.device:
        """Move the rule, and the state that belongs to no parameter, to the device of the first parameter."""
        device = members[0].param.device
        first_group = self.param_groups[0]
        if first_group["step"].device != device:
            first_group.update(
                {key: first_group[key].to(device) for key in (*COUNTERS, horizon.KEY) if key in first_group}
            )
            first_group["shared"] = {key: value.to(device) for key, value in first_group["shared"].items()}
        self._theta = tensors_of(self.rule)
        if any(value.device != device for value in self._theta):
            self.rule.to(device)
            self._theta = tensors_of(self.rule)
        return device

    def _context(self, members: Sequence[Member], loss: Tensor | None) -> tuple[StepContext, Flag]:
        """The context of the step, and whether its loss is finite."""
        first_group = self.param_groups[0]
        device = first_group["step"].device
        if self._acting.reads_loss and loss is None:
            self._report_missing_loss()
        planned = self._number(float(self._horizon()), device)
        context = StepContext(
            step=first_group["step"].float(),
            total_steps=planned,
            loss=loss,
            roles={m.name: m.role for m in members},
            weight_decay={m.name: m.group["weight_decay"] for m in members if m.group["weight_decay"]},
            phase=None
            if torch.compiler.is_compiling()
            else self._acting.phase_of(self.calls),  # a compiled step would keep the count of its compilation
            scheduled=horizon.scheduled(first_group, planned),
            epochs=None if self.epochs is None else self._number(self.epochs, device),
        )
        return context, loss is None or all_finite(loss)

    def _number(self, value: float, device: torch.device) -> Tensor:
        """A number as a float32 tensor of no dimensions; the same tensor at each step."""
        if torch.compiler.is_compiling():  # the tensors of a compilation must not be kept
            return _number(value, device)
        key = value, device
        if key not in self._numbers:
            if len(self._numbers) == MOST_NUMBERS:
                self._numbers.clear()
            self._numbers[key] = _number(value, device)
        return self._numbers[key]

    def _report_missing_loss(self) -> None:
        remedy = (
            "call step(loss), step(lambda: loss) or step(loss=loss), or set_loss(loss) before a step() that takes no "
            "loss, and under Lightning add LearnedOptimizerAdapter() to Trainer(callbacks=[...])."
        )
        if self._acting.needs_loss:
            raise ValueError(f"rule {self.rule_label!r} reads the loss, but none arrived; {remedy}")
        if "loss" not in self.signals.warned:
            self.signals.warned.add("loss")
            warnings.warn(
                f"rule {self.rule_label!r} reads the loss, but none arrived, so training continues without it; for "
                f"better steps {remedy}",
                stacklevel=7,
            )

    def _horizon(self) -> int:
        """The number of planned steps; 1 if it was not given and the rule does not read it."""
        if callable(self.total_steps):
            self.total_steps = checked_horizon(self.total_steps())
        total, saved = self.total_steps, self._run.saved_total
        if saved is not None and isinstance(total, int) and total != saved:
            self.param_groups[0][horizon.KEY] = horizon.changed(self.param_groups[0], saved)
        self._run.saved_total = None
        if self._acting.reads_horizon and total is None:
            raise ValueError(
                f"rule {self.rule_label!r} needs the planned number of steps, but total_steps is None; pass "
                "total_steps=..., or add LearnedOptimizerAdapter() to Trainer(callbacks=[...])."
            )
        if self._acting.reads_horizon and total is not None and self.calls >= total:
            self._warn_past_horizon(total)
        return total or 1

    def _warn_past_horizon(self, total: int) -> None:
        """Warn once after the planned steps; until the warning, each call waits for the device."""
        if "horizon" not in self.signals.warned and self.steps_made >= total:
            self.signals.warned.add("horizon")
            warnings.warn(
                f"LearnedOptimizer is past its total_steps={total}; it continues with its last step size.",
                stacklevel=8,  # the caller of step, through the two wrappers of torch
            )


def _number(value: float, device: torch.device) -> Tensor:
    # float32 is explicit, since the default type is half under "16-true". torch.full does not wait for a copy.
    return torch.full((), value, dtype=torch.float32, device=device)
