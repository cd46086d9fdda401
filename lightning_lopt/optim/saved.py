"""The part of an optimizer for validation losses, evaluation weights and checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.optim import horizon
from lightning_lopt.optim.checkpoint import fitting_state
from lightning_lopt.optim.copies import (
    BEST_STATISTICS,
    have_shapes_of,
    normalisation_layers,
    roll_back,
    statistics_of,
    without_copies,
)
from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard_checkpoint import KEY as GUARD
from lightning_lopt.optim.guard_checkpoint import resumed, with_copies
from lightning_lopt.optim.inputs import scalar_loss
from lightning_lopt.optim.precision import wide
from lightning_lopt.optim.sharding import cut_like, gathered
from lightning_lopt.optim.skips import SkipWatch
from lightning_lopt.optim.state_types import converted, widened
from lightning_lopt.optim.stepping import RuleOptimizer
from lightning_lopt.rules.base import State, UpdateRule


class SavedOptimizer(RuleOptimizer):
    """Validation, evaluation weights and checkpoints of :class:`~lightning_lopt.LearnedOptimizer`.

    Attributes:
        total_steps_given: whether the user gave the horizon, which then wins over the Trainer's estimate.
    """

    total_steps_given: bool

    @property
    def is_in_eval(self) -> bool:
        """Whether the parameters hold evaluation weights; always ``False`` for rules without evaluation weights."""
        return self._run.trained is not None

    @torch.no_grad()
    def evaluation_params(self) -> dict[Tensor, Tensor]:
        """Evaluation weights of each parameter, in its type; empty if the parameters are the evaluation weights."""
        if self.is_in_eval or type(self._acting).evaluation_params is UpdateRule.evaluation_params:
            return {}
        members = [member for member in self._members() if self.state.get(member.param)]
        states = {m.name: without_copies(self.state[m.param]) for m in members}
        params, tensors = gathered(({m.name: m.param for m in members}, states))
        params = {name: wide(param) for name, param in params.items()}
        tensors = {name: widened(tensor_state, params[name].dtype) for name, tensor_state in tensors.items()}
        values = self._acting.evaluation_params(params, State(tensors, self.param_groups[0]["shared"]))
        return {m.param: cut_like(_in_type_of(m.param, values[m.name]), m.param) for m in members}

    def trained_params(self) -> dict[Tensor, Tensor]:
        """Trained values of each parameter between :meth:`eval` and :meth:`train`; empty otherwise."""
        return dict(self._run.trained or {})

    @torch.no_grad()
    def validated(self, loss: Tensor | float, module: nn.Module | None = None) -> bool:
        """Pass a validation loss to a rule that reads it, as ``base`` and :class:`~lightning_lopt.RNNMLPRule` do.

        :class:`~lightning_lopt.LearnedOptimizerAdapter` calls this method after each validation. For rules that return
        to the parameters of the lowest loss, as ``base`` does, the state keeps a copy of these parameters. The running
        means and variances of normalisation layers are restored with the parameters; other buffers are not. Modules of
        ``fully_shard`` may hold copies from their last forward pass: call their ``reshard()`` if the result is true.

        Args:
            loss: one number, lower is better; in distributed training the mean over the ranks. If it is not finite, or
                the rule has no ``reads_validation``, nothing changes.
            module: the model with the normalisation layers, if this optimizer was not made from a module.

        Returns:
            whether the parameters of the lowest loss were restored, because the loss has risen.
        """
        first_group, rule = self.param_groups[0], self._acting
        value = scalar_loss(loss, first_group["step"].device)
        if not rule.reads_validation or not bool(value.isfinite()):
            return False
        members = self._members()
        if not first_group["shared"]:
            first_param = members[0].param  # it may be a shard, but the state needs a whole tensor
            blank = torch.zeros(first_param.shape, dtype=first_param.dtype, device=first_param.device)
            first_group["shared"] = rule.init_state({members[0].name: wide(blank)}, {}).shared
        steps, planned = first_group["step"], self._run.saved_total or self.total_steps
        progress = steps / planned if isinstance(planned, int) else torch.zeros_like(steps, dtype=torch.float32)
        shared = first_group["shared"] = rule.validated(State({}, first_group["shared"]), value, progress).shared
        rollback, copies = rule.rollback(shared), self._run.best_statistics
        layers = self._normalisation or normalisation_layers(module, [member.param for member in members])
        statistics = statistics_of(layers)
        if not have_shapes_of(copies, statistics):  # weights without their statistics would be worse than either
            rollback = rollback._replace(is_due=torch.zeros_like(rollback.is_due))
        is_back = roll_back(rollback, members, self.state)
        if bool(rollback.is_best):
            self._run.best_statistics = [values.clone() for values in statistics]
        if is_back:
            for values, copy in zip(statistics, copies, strict=True):
                values.copy_(copy)
            if self._guard is not None:
                self._guard.begin_at(members, self.state)
        return is_back

    @torch.no_grad()
    def eval(self) -> None:
        """Replace the parameters by the evaluation weights, :meth:`UpdateRule.evaluation_params`.

        Nothing changes for rules without evaluation weights. Modules of ``fully_shard`` may hold copies from their last
        forward pass: call their ``reshard()`` before :meth:`eval` and :meth:`train`.
        """
        values = self.evaluation_params()
        if values:
            self._run.trained = {param: param.detach().clone() for param in values}
            for param, value in values.items():
                param.copy_(value)

    @torch.no_grad()
    def train(self) -> None:
        """Replace the evaluation weights by the trained parameters, bit for bit."""
        for param, value in self.trained_params().items():
            param.copy_(value)
        self._run.trained = None

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        # The tensors are cloned: later steps write into the state, and tensors of one shape share a storage.
        saved["state"] = {
            key: {k: x.clone() for k, x in tensor_state.items()} for key, tensor_state in saved["state"].items()
        }
        first_group = saved["param_groups"][0]
        first_group["total_steps"] = None if callable(self.total_steps) else self.total_steps
        first_group["epochs"] = self.epochs
        # torch.distributed restores only keys that exist already. (0, 0) means that the horizon has not changed.
        first_group.setdefault(horizon.KEY, torch.zeros(2, dtype=torch.float32, device=first_group["step"].device))
        if self._run.best_statistics:
            first_group[BEST_STATISTICS] = [values.clone() for values in self._run.best_statistics]
        if self._guard is not None:
            first_group[GUARD] = self._guard.saved()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore. Names, roles and a horizon already set here win over the saved ones, and so do the types of state:
        ``state_dtype``, or that of the arithmetic.

        Parameters are matched by name if both sides have the same names, else by order. If the horizon of this
        optimizer differs from the saved horizon, schedules continue from their saved progress.

        Raises:
            ValueError: if the checkpoint is of another optimizer, rule or model, or damaged; nothing has changed then.
        """
        members = self._members()
        guard, state_to_check, copies = resumed(self._guard, state_dict)
        rule = self.rule if guard is None else guard.acting(self.rule)
        checked_state = fitting_state(state_to_check, self.param_groups, members, rule)
        state_before, groups_before = self.state, [dict(group) for group in self.param_groups]
        try:
            self._restore(with_copies(checked_state, copies, members), members, rule)
        except Exception:
            self.state, self.param_groups = state_before, groups_before
            raise
        self._skips = SkipWatch()
        self._guard = guard

    def _restore(self, checked_state: dict[str, Any], members: Sequence[Member], rule: UpdateRule) -> None:
        """Load a state that was checked against the state that ``rule`` makes."""
        present_labels = [
            {key: list(group[key]) for key in ("names", "roles")} | {"role": group["role"]}
            for group in self.param_groups
        ]
        super().load_state_dict(checked_state)
        for group, labels in zip(self.param_groups, present_labels, strict=True):
            group.update(labels)
        first_group = self.param_groups[0]
        keys = [key for group in checked_state["param_groups"] for key in group["params"]]
        # The saved tensors are used, since torch has cast those in self.state to the types of the parameters.
        states = ((member.param, checked_state["state"].get(key)) for key, member in zip(keys, members, strict=True))
        self.state = defaultdict(dict)
        for param, saved in states:
            if saved:
                device_state = {k: v.detach().to(param.device, copy=True) for k, v in saved.items()}
                typed = converted(device_state, self.state_dtype, rule, wide(param.detach()).dtype)
                self.state[param] = {k: cut_like(v, param) for k, v in typed.items()}
        first_group.setdefault("skipped_in_a_row", torch.zeros((), dtype=torch.int64))
        first_group.setdefault("shared", {})  # checkpoints of torch.distributed drop an empty dictionary
        if horizon.KEY in first_group and not bool(first_group[horizon.KEY].any()):
            del first_group[horizon.KEY]
        self._move_to_device_of(members)
        saved_total = first_group.pop("total_steps", None)
        if callable(self.total_steps) and not self.total_steps_given:  # it is a placeholder for the adapter's plan
            self.total_steps = None
        self._run.saved_total = saved_total if self.total_steps is not None else None
        if self.total_steps is None:
            self.total_steps = saved_total
        self._run.best_statistics = first_group.pop(BEST_STATISTICS, [])
        saved_epochs = first_group.pop("epochs", None)
        self.epochs = saved_epochs if self.epochs is None else self.epochs
        self._run.calls = sum(int(checked_state["param_groups"][0][key]) for key in ("step", "skipped_steps"))

    def __getstate__(self) -> dict[str, Any]:
        attributes = (
            *("rule", "rule_label", "total_steps_given", "epochs_given"),
            *("_run", "_guard", "compiles", "state_dtype", "_normalisation"),
        )
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in attributes}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_guard", None)
        self.__dict__.setdefault("compiles", None)
        self.__dict__.setdefault("state_dtype", None)
        self.__dict__.setdefault("epochs_given", False)
        self.__dict__.setdefault("_normalisation", [])
        self._run.__dict__.setdefault("best_statistics", [])
        if "signals" not in self.__dict__:
            self._begin_watching()
            self.labels = {}


def _in_type_of(param: Tensor, value: Tensor) -> Tensor:
    """The inverse of :func:`wide`."""
    return torch.view_as_complex(value).to(param.dtype) if param.is_complex() else value.to(param.dtype)
