"""A rule behind the ``torch.optim.Optimizer`` interface."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_numbers
from lightning_lopt.optim import horizon
from lightning_lopt.optim.checkpoint import COUNTERS
from lightning_lopt.optim.copies import normalisation_layers
from lightning_lopt.optim.groups import Labels, labels_of, named_groups, relabel
from lightning_lopt.optim.guard import LossGuard
from lightning_lopt.optim.guard_run import checked_guard
from lightning_lopt.optim.habits import SMALL, warn_of_small_rate
from lightning_lopt.optim.inputs import RunState, checked_horizon, scalar_loss
from lightning_lopt.optim.precision import autocast_disabled
from lightning_lopt.optim.saved import SavedOptimizer
from lightning_lopt.optim.sharding import check_placements, is_shard
from lightning_lopt.optim.state_types import checked_state_dtype
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.contract.roles import role_table
from lightning_lopt.rules.contract.untrained import untrained_warning

_log = logging.getLogger(__name__)

FORMAT = "lightning_lopt/1"


class LearnedOptimizer(SavedOptimizer):
    """Trains a model with an update rule; there is no learning rate to tune.

    The step of the rule is multiplied by ``lr``, so learning-rate schedulers and monitors work; with ``lr=0`` no
    parameter changes. ``lr`` is 1 unless a scheduler changes it, so ``LearningRateMonitor`` shows a constant;
    :class:`~lightning_lopt.LearnedOptimizerAdapter` logs the step sizes of the rule.

    As in ``torch.optim``, the state of a parameter begins with its first gradient: parameters may be loaded, cast,
    moved or materialised after the optimizer was built; frozen parameters need no state. If a tensor was replaced or
    its state was cleared, the state begins anew. Half-precision parameters are updated with float32 arithmetic and
    float32 state, also inside an autocast region; complex parameters are trained as pairs of real numbers.

    A step whose loss, gradients or updates are not finite is skipped and counted (:attr:`skipped_steps`), without
    waiting for the device. Many skipped steps cause a warning, and 50 in a row an error.

    Sharded parameters (``fully_shard``, FSDP2; build the optimizer after it) are stepped as whole tensors, so the run
    equals that of one process. A step gathers parameters, gradients and state in one collective, and needs the memory
    and the arithmetic of the whole model on each rank; between steps, state is kept in shards. Gradients of parameters
    that are not sharded are averaged over the ranks, which ``fully_shard`` does not do.

    A rule with *evaluation weights*, which differ from the trained weights, such as
    :class:`~lightning_lopt.ScheduleFreeAdamRule`, needs :meth:`eval` before the model is measured or saved, and
    :meth:`train` before the next step or checkpoint; :class:`~lightning_lopt.LearnedOptimizerAdapter` calls both.

    On a CPU, where calling small operations takes longer than their arithmetic, steps are traced. After 4 steps, the
    operations of each stack of up to 2^20 entries of one shape and role become a graph that runs without Python and
    gives the same bits; the graphs of a model of up to 2^18 entries are joined into one graph
    (:class:`~lightning_lopt.optim.traced_steps.TracedSteps`). Building a graph takes 3 to 50 ms; it is built if the
    planned run is long enough to save that time. The steps of a rule may then depend only on its arguments, θ and
    ``config``, as :class:`~lightning_lopt.UpdateRule` demands.

    With ``compile=True`` inductor, the compiler behind ``torch.compile``, compiles the same operations, for stacks of
    any size, on any device, and without the checks that ``torch.compile`` makes at each call.
    ``torch.compile(optimizer.step)`` traces the whole step instead and makes every step a full step
    (:attr:`UpdateRule.period`). Measure both with ``lightning-lopt benchmark --compile`` before you use them.

    With ``state_dtype=torch.bfloat16`` the state of parameters takes half the memory between steps. A step widens the
    state of one stack of parameters at a time, computes in float32, and rounds the new state at random, so that the
    expected value is the float32 state (:func:`~lightning_lopt.optim.rounding.rounded`). The random bits follow from
    the number of the step: runs repeat bit for bit, and no random generator is used.

    Args:
        params: a module, tensors, ``(name, tensor)`` pairs, or parameter groups of these. Groups may set ``lr``,
            ``weight_decay`` and ``role`` (``"matrix"``, ``"vector"``, ``"embedding"`` or ``"head"``). With a module,
            roles follow from the types of its layers, also for parameters that are frozen now and join later. Tensors
            without a module are matrices if their rank is at least 2, and vectors otherwise (:meth:`relabel`).
        rule: name of embedded weights, a folder, ``hf://owner/name``, or an :class:`~lightning_lopt.UpdateRule`. The
            rule is moved to the device of the parameters. Its weights do not change and are not part of ``state_dict``.
        total_steps: planned number of steps, or a function of no arguments that is called at the first step. With
            ``None``, :class:`~lightning_lopt.LearnedOptimizerAdapter` sets it.
        epochs: planned number of passes over the training data, > 0: the more passes, the shorter are the steps of
            pretrained tensors. With ``None``, the adapter sets it; without the adapter it is unknown.
        lr: multiplies every step, >= 0.
        weight_decay: extra decoupled weight decay, >= 0, in units of the step size of the rule.
        guard: whether to test the rule in each step, and to switch to AdamW, with a warning, if the rule fails; or a
            :class:`~lightning_lopt.LossGuard` with the settings of the tests. It costs 8 bytes per parameter.
        compile: whether steps are compiled. There is a graph for each number of tensors, shape, type and role, another
            for its full steps (:attr:`UpdateRule.period`), and one for the quantities of all tensors. Each graph is
            compiled at the second step that needs it, in 1 to 30 seconds, as the log says at level ``INFO``; all graphs
            together take about a minute on a small network. Numbers are the same up to rounding. If compiling fails,
            for instance without a C++ compiler, one warning says so, and steps are made as with ``None``. With
            ``None``, steps are not compiled; on a CPU they are traced if that saves time, as the log says once at level
            ``INFO``. With ``False``, steps are neither compiled nor traced.
        state_dtype: type of the stored state of parameters. ``torch.bfloat16`` applies to all tensors but those of one
            entry and those of :attr:`UpdateRule.exact_state`. ``None`` and ``torch.float32`` keep the types that the
            rule makes. Checkpoints of either kind are converted.

    Raises:
        TypeError: if a class is passed in place of an object, or parameters are no tensors.
        ValueError: for arguments out of range, parameters that are cut along two dimensions (FSDP2 with tensor
            parallelism), a checkpoint of another optimizer, or, at the first step, if the rule needs a loss or a
            horizon that was not given.
        RuntimeError: after 50 skipped steps in a row.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LearnedOptimizer(model, total_steps=20)
        >>> for _ in range(20):
        ...     loss = (model(torch.ones(4, 2)) - 3).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step(loss)
        >>> optimizer.steps_made
        20
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        rule: str | Path | UpdateRule = "base",
        *,
        total_steps: int | Callable[[], int] | None = None,
        epochs: float | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        guard: bool | LossGuard = False,
        compile: bool | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        check_numbers(0.0, lr=lr, weight_decay=weight_decay)
        groups = named_groups(params)
        if not any(group["params"] for group in groups):
            raise ValueError("LearnedOptimizer got no parameters; pass model, model.parameters() or parameter groups.")
        self.rule = _rule_of(rule)
        self.rule_label = self.rule.rule_name if isinstance(rule, UpdateRule) else str(rule)
        self._run = RunState(total_steps if callable(total_steps) else checked_horizon(total_steps))
        self.total_steps_given = total_steps is not None  # a number from the user wins over the Trainer's estimate
        self.epochs, self.epochs_given = epochs, epochs is not None
        self.labels: Labels = labels_of(params) if isinstance(params, nn.Module) else {}
        self._guard = checked_guard(guard)
        self.state_dtype = checked_state_dtype(state_dtype)
        self.compiles = compile
        if compile:
            _log.info("LearnedOptimizer: steps of rule %r are compiled", self.rule_label)
        self._begin_watching()
        super().__init__(
            groups,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "role": None,
                "format": f"{FORMAT}:{self.rule.rule_name}",
                "momentum": 0.0,  # no rule reads it, but OneCycleLR and CyclicLR need an entry to cycle
            },
        )
        self.param_groups[0] |= {key: torch.zeros((), dtype=torch.int64) for key in COUNTERS}
        self.param_groups[0]["shared"] = {}
        trained = [member.param for member in self._members()]
        self._normalisation = normalisation_layers(params if isinstance(params, nn.Module) else None, trained)
        untrained = untrained_warning(self.rule)
        if untrained is not None:
            warnings.warn(untrained, stacklevel=3)
        if 0 < max(group["lr"] for group in self.param_groups) < SMALL:
            self._rates.warned()
            warn_of_small_rate(max(group["lr"] for group in self.param_groups), stacklevel=3)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; their state begins with their first gradient, and the step count continues."""
        if self.is_in_eval:
            raise ValueError("parameters were added between eval() and train(); call train() first.")
        group = dict(param_group)
        if "names" not in group:
            (group,) = named_groups([group], labels=self.labels, first=len(self.param_groups))
        names = [name for present in (*self.param_groups, group) for name in present["names"]]
        duplicate = next((name for name in group["names"] if names.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"two parameters are named {duplicate!r}; pass names that differ, or only the tensors.")
        check_placements(group["params"])
        if self._guard is not None and any(map(is_shard, group["params"])):
            raise ValueError("guard=True keeps copies of whole parameters, but these are sharded; use guard=False.")
        super().add_param_group(group)

    def relabel(self, labels: Labels) -> None:
        """Set names and roles, from :func:`~lightning_lopt.optim.labels_of`, of parameters that came as bare tensors.

        If parameters have state already, their names and roles do not change, since their state depends on their role.
        """
        self.labels = labels
        if not self.state:
            relabel(self.param_groups, labels)

    def role_table(self) -> str:
        """Name, shape and role of every parameter, as text."""
        members = self._members()
        return role_table({m.name: m.param for m in members}, {m.name: m.role for m in members})

    def set_loss(self, loss: Tensor | float) -> None:
        """Set the loss of the next step, for wrappers whose ``step`` takes no loss.

        This method works through the wrappers of Fabric and Accelerate. A loss that is passed to :meth:`step` wins.

        Args:
            loss: one number; in distributed training see :meth:`step`.
        """
        self.signals.user_loss = scalar_loss(loss, self.param_groups[0]["step"].device)

    def set_horizon(self, total_steps: int) -> None:
        """Change the number of planned steps; in a run that has begun, schedules continue without a jump.

        Args:
            total_steps: whole number of at least 1, counted from the first step of the run.
        """
        steps, previous = checked_horizon(total_steps), self.total_steps
        is_resumed = self._run.saved_total is not None  # the next step changes from the horizon of the checkpoint
        if self.calls and isinstance(previous, int) and steps is not None and steps != previous and not is_resumed:
            self.param_groups[0][horizon.KEY] = horizon.changed(self.param_groups[0], previous)
        self.total_steps = steps

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | Tensor | float | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """Make one step.

        The loss is the first of these that is given: ``loss``, the argument of :meth:`set_loss`, the loss from
        :class:`~lightning_lopt.LearnedOptimizerAdapter`, and the result of ``closure``.

        Args:
            closure: computes loss and gradients again and returns the loss; or the loss itself.
            loss: loss of this step. In distributed training it has to be the mean over the ranks, as the gradients are,
                or the ranks drift apart; :class:`~lightning_lopt.LearnedOptimizerAdapter` computes that mean.

        Returns:
            the result of ``closure``; ``None`` without a closure.
        """
        if self.is_in_eval:
            raise RuntimeError(
                "step() was called after eval(); call train() first, so that gradients belong to the trained weights."
            )
        result = None
        if callable(closure):
            with torch.enable_grad():
                result = closure()
        elif closure is not None:
            loss = closure if loss is None else loss
        signals = self.signals
        user_loss = signals.user_loss if loss is None else loss
        delivered_loss, signals.loss, signals.user_loss = signals.loss, None, None
        if user_loss is None and delivered_loss is None and isinstance(result, Tensor | Real):
            user_loss = cast(Tensor, result)
        # The mean over a tensor without entries would put NaN into the state.
        members = [m for m in self._members() if m.param.grad is not None and m.param.numel()]
        if not members:
            return result
        device = self._move_to_device_of(members)
        step_loss = delivered_loss if user_loss is None else user_loss
        scalar = None if step_loss is None else scalar_loss(step_loss, device)
        if user_loss is not None and signals.reduce is not None:
            scalar = signals.reduce(cast(Tensor, scalar))
        with autocast_disabled(device):
            if self._is_made_to_create_state(members, scalar):
                self._begin(members)
            else:
                self._advance(members, scalar)
        return result


def _rule_of(rule: Any) -> UpdateRule:
    if isinstance(rule, UpdateRule):
        return rule
    if isinstance(rule, type):
        raise TypeError(f"got the class {rule.__name__} where a rule is needed; pass {rule.__name__}().")
    from lightning_lopt.io import load_rule

    return load_rule(rule)
