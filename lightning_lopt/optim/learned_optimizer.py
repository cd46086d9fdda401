"""A rule behind the ``torch.optim.Optimizer`` interface."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_lopt.optim.checkpoint import check_state
from lightning_lopt.optim.groups import labels_of, named_groups
from lightning_lopt.optim.inputs import StepSignals, checked_horizon, one_number
from lightning_lopt.rules.base import Role, State, StepContext, UpdateRule
from lightning_lopt.rules.roles import role_table

FORMAT = "lightning_lopt/1"


class LearnedOptimizer(torch.optim.Optimizer):
    """Trains a model with an update rule; no learning rate to tune.

    The step of the rule is multiplied by ``lr``, so learning-rate schedulers and monitors work; ``lr=0`` changes
    nothing. Half-precision parameters are updated from float32 arithmetic with float32 state. A step whose loss or
    gradients are not finite is skipped and counted (:attr:`skipped_steps`), without waiting for the device.

    A rule that trains at one point and answers for another, as :class:`~lightning_lopt.ScheduleFreeAdamRule` does,
    needs :meth:`eval` before the model is measured or kept, and :meth:`train` before the next step or checkpoint; with
    :class:`~lightning_lopt.LearnedOptimizerAdapter` that is seen to.

    Both ``optimizer.rule.compile()`` and ``torch.compile(optimizer.step)`` trace; measure before keeping either. On one
    CPU core a compiled step of ``Celo2BaseRule`` takes twice as long as the plain one, whose blocks stay in the cache.
    ``torch.compile(optimizer.step)`` makes every step a full one (:attr:`UpdateRule.period`).

    Args:
        params: a module, tensors, ``(name, tensor)`` pairs, or parameter groups of these. Groups may set ``lr``,
            ``weight_decay`` and ``role`` (``"matrix"``, ``"vector"``, ``"embedding"`` or ``"head"``). With a module,
            roles follow from the types of its layers, also for those of its parameters that are frozen now and join
            later; bare tensors of rank 2 and up are matrices, the rest vectors.
        rule: name of embedded weights, a folder, ``hf://owner/name``, or an :class:`~lightning_lopt.UpdateRule`. Its
            weights are used as they are, on the device of the parameters (to which it is moved), and are not part of
            ``state_dict``.
        total_steps: planned number of steps, or a function of no arguments read at the first step. ``None`` leaves it
            to :class:`~lightning_lopt.LearnedOptimizerAdapter`.
        lr: multiplies every step, >= 0.
        weight_decay: extra decoupled weight decay, >= 0, in units of the rule's own step size.

    Raises:
        ValueError: for arguments out of range, a checkpoint of another optimizer, or, at the first step, if the rule
            needs a loss or a horizon and none has arrived.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        rule: str | Path | UpdateRule = "base",
        *,
        total_steps: int | Callable[[], int] | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        for what, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not (0 <= value < math.inf):
                raise ValueError(f"{what} must be a number >= 0, got {value!r}.")
        if not isinstance(rule, UpdateRule):
            from lightning_lopt.io import load_rule

            rule = load_rule(rule)
        self.rule = rule
        self.total_steps = total_steps if callable(total_steps) else checked_horizon(total_steps)
        self.total_steps_given = total_steps is not None  # then it wins over the Trainer's estimate
        self.signals = StepSignals()
        self.labels = labels_of(params) if isinstance(params, nn.Module) else {}
        self._trained: dict[str, Tensor] | None = None  # in eval(): the parameters that training goes on with
        self._calls = 0  # steps, skipped ones too: what is known without waiting for the device
        groups = named_groups(params)
        if not any(group["params"] for group in groups):
            raise ValueError("LearnedOptimizer got no parameters; pass model, model.parameters() or parameter groups.")
        super().__init__(
            groups, {"lr": lr, "weight_decay": weight_decay, "role": None, "format": f"{FORMAT}:{rule.rule_name}"}
        )
        own = self.param_groups[0]
        own["step"] = torch.zeros((), dtype=torch.int64)
        own["skipped_steps"] = torch.zeros((), dtype=torch.int64)
        self._follow_parameters()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; their state begins now, the step count and everything shared goes on."""
        if self.__dict__.get("_trained") is not None:
            raise ValueError("parameters were added between eval() and train(); call train() before.")
        group = dict(param_group)
        if "names" not in group:
            (group,) = named_groups([group], labels=self.labels, first=len(self.param_groups))
        names = [name for present in (*self.param_groups, group) for name in present["names"]]
        twice = next((name for name in group["names"] if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two parameters are named {twice!r}; pass names that differ, or the tensors alone.")
        super().add_param_group(group)
        group = self.param_groups[-1]
        named = dict(zip(group["names"], group["params"], strict=True))
        with torch.no_grad():
            state = self.rule.init_state(
                {name: _wide(param.detach()) for name, param in named.items()}, self._roles_of(group)
            )
        for name, param in named.items():
            self.state[param] = dict(state.tensors[name])
        if named:
            self.param_groups[0].setdefault("shared", state.shared)

    def _follow_parameters(self) -> None:
        """Bring the rule, and the state that belongs to no parameter, to the device of the first parameter."""
        device = next(param.device for group in self.param_groups for param in group["params"])
        own = self.param_groups[0]
        if own["step"].device != device:
            own.update({key: own[key].to(device) for key in ("step", "skipped_steps")})
            own["shared"] = {key: value.to(device) for key, value in own["shared"].items()}
        if any(value.device != device for value in self.rule.parameters()):
            self.rule.to(device)

    @property
    def skipped_steps(self) -> int:
        """Steps that were skipped because the loss or a gradient was not finite."""
        return int(self.param_groups[0]["skipped_steps"])

    def role_table(self) -> str:
        """Name, shape and role of every parameter, as text."""
        roles = {name: role for group in self.param_groups for name, role in self._roles_of(group).items()}
        return role_table(self._named, roles)

    @property
    def _named(self) -> dict[str, Tensor]:
        return {n: p for group in self.param_groups for n, p in zip(group["names"], group["params"], strict=True)}

    def _roles_of(self, group: dict[str, Any]) -> dict[str, Role]:
        given = group["role"]
        return {n: given or role for n, role in zip(group["names"], group["roles"], strict=True)}

    @torch.no_grad()
    def validated(self, loss: Tensor | float) -> None:
        """Tell a rule that reads it, as :class:`~lightning_lopt.RNNMLPRule`, a loss on data that is not trained on.

        Args:
            loss: one number, finite; in distributed training the mean over the ranks.
        """
        own = self.param_groups[0]
        own["shared"] = self.rule.validated(State({}, own["shared"]), one_number(loss, own["step"].device)).shared

    @property
    def is_in_eval(self) -> bool:
        """Whether the parameters are those of :meth:`eval`; never so for rules that answer for the ones they train."""
        return self._trained is not None

    @torch.no_grad()
    def evaluation_params(self) -> dict[Tensor, Tensor]:
        """For each parameter the values to measure and to keep, in its type; empty where these are its own."""
        if self.is_in_eval or type(self.rule).evaluation_params is UpdateRule.evaluation_params:
            return {}
        named = self._named
        state = State({name: self.state[param] for name, param in named.items()}, self.param_groups[0]["shared"])
        values = self.rule.evaluation_params({name: _wide(param) for name, param in named.items()}, state)
        return {param: values[name].to(param.dtype) for name, param in named.items()}

    def trained_params(self) -> dict[Tensor, Tensor]:
        """For each parameter the values that training goes on with, while they are not its own: after :meth:`eval`."""
        named = self._named
        return {named[name]: value for name, value in (self._trained or {}).items()}

    @torch.no_grad()
    def eval(self) -> None:
        """Put the parameters where the rule is to be measured, :meth:`UpdateRule.evaluation_params`.

        Costs nothing and changes nothing for rules that are measured where they train.
        """
        values = self.evaluation_params()
        if values:
            self._trained = {name: param.detach().clone() for name, param in self._named.items()}
            for param, value in values.items():
                param.copy_(value)

    @torch.no_grad()
    def train(self) -> None:
        """Put the parameters back where training goes on, bit for bit."""
        for param, value in self.trained_params().items():
            param.copy_(value)
        self._trained = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None) -> Any:
        """One step.

        Args:
            closure: computes loss and gradients again and returns the loss.
            loss: loss of this step, if no closure returns it. In distributed training it has to be the mean over the
                ranks, as the gradients are, or the ranks drift apart; with
                :class:`~lightning_lopt.LearnedOptimizerAdapter` that is seen to.

        Returns:
            what ``closure`` returned, else ``None``.
        """
        if self.is_in_eval:
            raise RuntimeError("step() was called after eval(); call train() before, so that gradients fit.")
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        delivered, self.signals.loss = self.signals.loss, None
        if loss is None and delivered is None and isinstance(result, Tensor | Real):
            loss = cast(Tensor, result)
        params = {
            name: param
            for group in self.param_groups
            for name, param in zip(group["names"], group["params"], strict=True)
            if param.grad is not None
        }
        if not params:
            return result
        self._follow_parameters()
        own = self.param_groups[0]
        source = delivered if loss is None else loss
        value = None if source is None else one_number(source, own["step"].device)
        if loss is not None and self.signals.reduce is not None:
            value = self.signals.reduce(cast(Tensor, value))
        context, finite = self._context(value, own)
        grads = {}
        for name, param in params.items():
            grad = cast(Tensor, param.grad)
            if grad.is_sparse:
                raise ValueError(f"the gradient of {name!r} is sparse; use nn.Embedding(..., sparse=False).")
            grads[name] = _wide(grad)
        finite = finite & _all_finite(grads.values(), finite.device)
        state = State({name: self.state[param] for name, param in params.items()}, own["shared"])
        wide = {name: _wide(param) for name, param in params.items()}
        updates, after = self.rule(wide, grads, state, context)
        certain = _is_known(finite) and bool(finite)

        def unless_skipped(new: Tensor, otherwise: Tensor | float) -> Tensor:
            if certain or new is otherwise:
                return new
            return torch.where(finite, new, otherwise)  # not multiply: 0 x nan is nan

        for group in self.param_groups:
            for name, param in zip(group["names"], group["params"], strict=True):
                if name in updates:
                    # the sum is made in the wider type, rounded once
                    whole = isinstance(group["lr"], float) and group["lr"] == 1.0
                    param.add_(unless_skipped(updates[name] if whole else updates[name] * group["lr"], 0.0))
                    old = self.state[param]
                    self.state[param] = {k: unless_skipped(v, old[k]) for k, v in after.tensors[name].items()}
        own["shared"] = {k: unless_skipped(v, own["shared"][k]) for k, v in after.shared.items()}
        self._calls += 1
        own["step"] = own["step"] + finite.long()
        own["skipped_steps"] = own["skipped_steps"] + (~finite).long()
        return result

    def _context(self, loss: Tensor | None, own: dict[str, Any]) -> tuple[StepContext, Tensor]:
        """The step's context, and whether its loss is finite."""
        device = own["step"].device
        if self.rule.reads_loss and loss is None:
            raise ValueError(
                f"rule {self.rule.rule_name!r} reads the loss, but none arrived; call step(closure) or "
                "step(loss=loss), and under Lightning add LearnedOptimizerAdapter() to Trainer(callbacks=[...])."
            )
        if callable(self.total_steps):
            self.total_steps = checked_horizon(self.total_steps())
        if self.rule.reads_horizon and self.total_steps is None:
            raise ValueError(
                f"rule {self.rule.rule_name!r} needs the number of steps to come, but total_steps is None; pass "
                "total_steps=..., or add LearnedOptimizerAdapter() to Trainer(callbacks=[...])."
            )
        total = self.total_steps or 1
        if self.rule.reads_horizon and self._calls >= total and not self.signals.warned:
            self.signals.warned = int(own["step"]) >= total  # which waits for the device, so not before it may be true
            if self.signals.warned:
                warnings.warn(
                    f"LearnedOptimizer is past its total_steps={total}; it goes on with its last step size.",
                    stacklevel=5,  # whoever called step, through torch's two wrappers
                )
        finite = torch.ones((), dtype=torch.bool, device=device) if loss is None else torch.isfinite(loss)
        roles = {name: role for group in self.param_groups for name, role in self._roles_of(group).items()}
        decay = {n: g["weight_decay"] for g in self.param_groups if g["weight_decay"] for n in g["names"]}
        horizon = torch.full((), float(total), device=device)  # unlike torch.tensor, no copy to wait for
        full = torch.compiler.is_compiling() or self.rule.is_full(self._calls)  # whose count stands still then
        return StepContext(own["step"].float(), horizon, loss, roles, decay, full), finite

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        saved["param_groups"][0]["total_steps"] = None if callable(self.total_steps) else self.total_steps
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; tensors keep their saved type. Names, roles and a horizon already set here win over the saved ones.

        Raises:
            ValueError: if the checkpoint is of another optimizer, rule or model; nothing has changed then.
        """
        check_state(state_dict, self.param_groups, self.rule)
        kept = [{key: group[key] for key in ("names", "roles", "role")} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, labels, saved in zip(self.param_groups, kept, state_dict["param_groups"], strict=True):
            group.update(labels)
            for param, key in zip(group["params"], saved["params"], strict=True):
                own_state = state_dict["state"][key]  # in the saved types: torch has cast them to the parameter's
                self.state[param] = {k: v.detach().to(param.device, copy=True) for k, v in own_state.items()}
        self._follow_parameters()
        own = self.param_groups[0]
        saved_total = own.pop("total_steps", None)
        if self.total_steps is None:
            self.total_steps = saved_total
        self._calls = int(own["step"] + own["skipped_steps"])

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: self.__dict__[key] for key in ("rule", "total_steps", "total_steps_given", "_calls", "_trained")}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "signals" not in self.__dict__:
            self.signals = StepSignals()
            self.labels = {}


def _wide(x: Tensor) -> Tensor:
    """``x`` in the type the rule computes in: float32, or float64 where it is already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether all entries are finite, 0-dim on ``device``; NaN is both the smallest and the largest of its tensor."""
    extremes = [extreme.to(device) for x in tensors if x.numel() for extreme in torch.aminmax(x)]
    return torch.isfinite(torch.stack(extremes)).all() if extremes else torch.ones((), dtype=torch.bool, device=device)


def _is_known(flag: Tensor) -> bool:
    """Whether looking at ``flag`` waits for nothing."""
    return flag.device.type == "cpu" and not torch.compiler.is_compiling()
