"""One step of a rule on the parameters of an optimizer: state, context, arithmetic, counters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from lightning_lopt.optim import horizon
from lightning_lopt.optim.checkpoint import COUNTERS
from lightning_lopt.optim.diagnostics import relative_steps
from lightning_lopt.optim.groups import Labels, Member, members_of
from lightning_lopt.optim.guard_readings import measured
from lightning_lopt.optim.guard_run import Guard
from lightning_lopt.optim.habits import RateWatch
from lightning_lopt.optim.inputs import RunState, StepSignals, checked_horizon
from lightning_lopt.optim.precision import all_finite, known, real, wide
from lightning_lopt.optim.rates import multiplier
from lightning_lopt.optim.sharding import cut_like, is_sharded, local, mean_over_ranks, part, reduced, whole, with_local
from lightning_lopt.optim.skips import SkipWatch, not_finite
from lightning_lopt.rules.base import Params, State, StepContext, UpdateRule


class RuleOptimizer(torch.optim.Optimizer):
    """What makes the steps of :class:`~lightning_lopt.LearnedOptimizer`, without its public interface.

    The state of a parameter is ``state[param]``; everything else that a checkpoint needs is in the first parameter
    group: the counters ``step``, ``skipped_steps`` and ``skipped_in_a_row`` (0-dim, int64), the rule's ``shared`` state
    and, where the horizon has changed, ``schedule``.

    Attributes:
        rule: the update rule.
        rule_label: what the user calls it.
        labels: names and roles of parameters that may join later.
        signals: what reaches a step from outside; shared with wrappers.
    """

    rule: UpdateRule
    rule_label: str
    labels: Labels
    signals: StepSignals
    _run: RunState
    _guard: Guard | None

    def _begin_watching(self) -> None:
        """What belongs to this object and process: it is neither copied nor saved."""
        self.signals = StepSignals()
        self._skips = SkipWatch()
        self._rates = RateWatch()

    @property
    def total_steps(self) -> int | Callable[[], int] | None:
        """The planned number of steps, or a function that gives it at the first step."""
        return self._run.total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | Callable[[], int] | None) -> None:
        self._run.total_steps = total_steps

    @property
    def calls(self) -> int:
        """Steps, skipped ones too: what is known without waiting for the device."""
        return self._run.calls

    @property
    def steps_made(self) -> int:
        """Steps that were made, without skipped ones; reading it waits for the device."""
        return int(self.param_groups[0]["step"])

    @property
    def skipped_steps(self) -> int:
        """Steps that were skipped because the loss, a gradient or an update was not finite; reading it waits for the
        device."""
        return int(self.param_groups[0]["skipped_steps"])

    @property
    def guard_state(self) -> str:
        """Of :class:`~lightning_lopt.LossGuard`: ``"off"``, ``"active"``, or when and why training switched."""
        return "off" if self._guard is None else self._guard.state

    @property
    def _acting(self) -> UpdateRule:
        """What makes the steps: the rule, or what a guard has put in its place."""
        return self.rule if self._guard is None else self._guard.acting(self.rule)

    @property
    def _asked(self) -> UpdateRule:
        """The rule that knows what the state is, :meth:`Guard.asked`."""
        return self.rule if self._guard is None else self._guard.asked(self.rule)

    def _members(self) -> list[Member]:
        return list(members_of(self.param_groups, self.labels))

    def _advance(self, members: Sequence[Member], loss: Tensor | None) -> None:
        """Step the parameters of ``members``, or count a skipped step."""
        own = self.param_groups[0]
        params, grads, tensors = self._inputs(members)
        context, finite = self._context(members, loss)
        updates, after = self._acting(params, grads, State(tensors, own["shared"]), context)
        finite = finite & all_finite([*grads.values(), *updates.values()], finite.device)
        is_finite = known(finite)

        def unless_skipped(new: Tensor, otherwise: Tensor | float) -> Tensor:
            if is_finite or new is otherwise:
                return new
            return torch.where(finite, new, otherwise)  # not multiply: 0 x nan is nan

        if self.signals.wants_diagnostics:
            self.signals.wants_diagnostics = False
            self.signals.diagnostics = relative_steps(members, params, updates) | self._acting.diagnostics(after)
        if is_finite is not False:
            for group, name, _, param in members:
                if name in updates:
                    lr, update = multiplier(group), updates[name]
                    # the sum is made in the wider type, rounded once
                    scaled = update if isinstance(lr, float) and lr == 1.0 else update * lr
                    real(local(param)).add_(unless_skipped(part(scaled, param), 0.0))
                    old = self.state[param]
                    self.state[param] = {
                        k: with_local(unless_skipped(part(v, old[k]), local(old[k])), old[k])
                        for k, v in after.tensors[name].items()
                    }
            own["shared"] = {k: unless_skipped(v, own["shared"][k]) for k, v in after.shared.items()}
        self._run.calls += 1
        skipped = (~finite).long()
        own["step"] = own["step"] + finite.long()
        own["skipped_steps"] = own["skipped_steps"] + skipped
        own["skipped_in_a_row"] = (own["skipped_in_a_row"] + skipped) * skipped
        if self._guard is not None and updates:  # before `_skips`, which may raise
            reading = partial(measured, members, params, grads, updates, loss)
            self._guard.look(reading, self._members, self.state, own["shared"], self.total_steps)
        self._rates.look(self.param_groups)
        self._skips.look(own, self.calls, lambda: not_finite(loss, grads, updates))

    def _inputs(self, members: Sequence[Member]) -> tuple[Params, Params, dict[str, dict[str, Tensor]]]:
        """Parameters, gradients and state of ``members`` by name as the rule gets them: whole, wide, state begun."""
        grads = {m.name: _dense(cast(Tensor, m.param.grad)) for m in members}
        tensors = {m.name: self.state[m.param] for m in members if self.state.get(m.param)}
        beginners = [m for m in members if m.name not in tensors]
        params = {m.name: m.param.detach() for m in members}
        sharded = is_sharded(members)
        if sharded:
            # Checkpoints of torch.distributed miss the state of a trainable parameter that has had no gradient.
            grads = {m.name: reduced(grads[m.name], m.param) for m in members}
            waiting = [m for m in self._members() if m.param.requires_grad and m.param not in self.state]
            beginners += [m for m in waiting if m.name not in grads]
            params, grads, tensors = whole((params | {m.name: m.param.detach() for m in beginners}, grads, tensors))
        params, grads = ({name: wide(x) for name, x in given.items()} for given in (params, grads))
        if sharded:
            grads = mean_over_ranks(grads, members)
        tensors = {**tensors, **self._begin_state(beginners, params)}
        if self._guard is not None:
            self._guard.prepare(members, self.state)
            tensors = {m.name: self.state[m.param] for m in members}  # with the copies
        return {m.name: params[m.name] for m in members}, grads, {m.name: tensors[m.name] for m in members}

    def _begin_state(self, members: Sequence[Member], params: Params) -> dict[str, dict[str, Tensor]]:
        """Begin the state of ``members``, whose whole values are ``params``; return it, whole, by name."""
        if not members:
            return {}
        state = self._acting.init_state({m.name: params[m.name] for m in members}, {m.name: m.role for m in members})
        for member in members:
            self.state[member.param] = {k: cut_like(v, member.param) for k, v in state.tensors[member.name].items()}
        own = self.param_groups[0]
        own["shared"] = own["shared"] or state.shared
        return state.tensors

    def _is_made_to_create_state(self, members: Sequence[Member], loss: Tensor | None) -> bool:
        """Whether this step is that of ``torch.distributed.checkpoint``, which makes one to have the state created:
        no loss, all gradients and learning rates 0, no state."""
        if self.state or loss is not None or any(float(m.group["lr"]) for m in members):
            return False
        grads = whole([reduced(cast(Tensor, m.param.grad), m.param) for m in members])
        return not any(bool(grad.any()) for grad in grads)

    def _follow(self, members: Sequence[Member]) -> torch.device:
        """Bring the rule, and the state that belongs to no parameter, to the device of the first parameter."""
        device = members[0].param.device
        own = self.param_groups[0]
        if own["step"].device != device:
            own.update({key: own[key].to(device) for key in (*COUNTERS, horizon.KEY) if key in own})
            own["shared"] = {key: value.to(device) for key, value in own["shared"].items()}
        if any(value.device != device for value in self.rule.parameters()):
            self.rule.to(device)
        return device

    def _context(self, members: Sequence[Member], loss: Tensor | None) -> tuple[StepContext, Tensor]:
        """The step's context, and whether its loss is finite."""
        own = self.param_groups[0]
        device = own["step"].device
        if self._acting.reads_loss and loss is None:
            self._miss_loss()
        total = self._horizon()
        finite = torch.ones((), dtype=torch.bool, device=device) if loss is None else torch.isfinite(loss)
        # The type is named, since the default is half under "16-true". Unlike torch.tensor, no copy is waited for.
        planned = torch.full((), float(total), dtype=torch.float32, device=device)
        context = StepContext(
            step=own["step"].float(),
            total_steps=planned,
            loss=loss,
            roles={m.name: m.role for m in members},
            weight_decay={m.name: m.group["weight_decay"] for m in members if m.group["weight_decay"]},
            phase=None if torch.compiler.is_compiling() else self._acting.phase_of(self.calls),  # whose count stands still then
            scheduled=horizon.scheduled(own, planned),
        )
        return context, finite

    def _miss_loss(self) -> None:
        how = (
            "call step(loss), step(lambda: loss) or step(loss=loss), or set_loss(loss) before a step() that takes "
            "none, and under Lightning add LearnedOptimizerAdapter() to Trainer(callbacks=[...])."
        )
        if self._acting.needs_loss:
            raise ValueError(f"rule {self.rule_label!r} reads the loss, but none arrived; {how}")
        if "loss" not in self.signals.warned:
            self.signals.warned.add("loss")
            warnings.warn(
                f"rule {self.rule_label!r} reads the loss, but none arrived, so it goes on without; for better steps "
                f"{how}",
                stacklevel=7,
            )

    def _horizon(self) -> int:
        """The number of planned steps; 1 for rules that do not read it and were not told."""
        if callable(self.total_steps):
            self.total_steps = checked_horizon(self.total_steps())
        total, saved = self.total_steps, self._run.saved_total
        if saved is not None and isinstance(total, int) and total != saved:
            self.param_groups[0][horizon.KEY] = horizon.changed(self.param_groups[0], saved, total)
        self._run.saved_total = None
        if self._acting.reads_horizon and total is None:
            raise ValueError(
                f"rule {self.rule_label!r} needs the number of steps to come, but total_steps is None; pass "
                "total_steps=..., or add LearnedOptimizerAdapter() to Trainer(callbacks=[...])."
            )
        if self._acting.reads_horizon and total is not None and self.calls >= total:
            self._warn_past_horizon(total)
        return total or 1

    def _warn_past_horizon(self, total: int) -> None:
        """Warn once that the planned steps are over, which waits for the device until it has happened."""
        if "horizon" not in self.signals.warned and self.steps_made >= total:
            self.signals.warned.add("horizon")
            warnings.warn(
                f"LearnedOptimizer is past its total_steps={total}; it goes on with its last step size.",
                stacklevel=8,  # whoever called step, through torch's two wrappers
            )


def _dense(grad: Tensor) -> Tensor:
    """Rows without a gradient have zeros, as those of a dense embedding have."""
    return grad.to_dense() if grad.is_sparse else grad
