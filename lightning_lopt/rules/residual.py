"""The flagship: a strong hand-designed rule, and small networks that start as its identity and learn the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_numbers, check_positive, check_sizes
from lightning_lopt.rules.base import (
    THETA_DTYPE,
    Columns,
    Rollback,
    State,
    StepContext,
    TensorInputs,
    TensorState,
    UpdateRule,
    register_rule,
)
from lightning_lopt.rules.contract.roles import ROLES, Role, check_role
from lightning_lopt.rules.residual_parts import validation
from lightning_lopt.rules.residual_parts.calibration import Calibration, power_and_promises
from lightning_lopt.rules.residual_parts.controller import Controller, Controls
from lightning_lopt.rules.residual_parts.direction import DirectionMLP
from lightning_lopt.rules.residual_parts.eigenbasis import init_bases
from lightning_lopt.rules.residual_parts.gradient_unit import extremes_of, in_unit, largest_of, per_unit_of, unit_of
from lightning_lopt.rules.residual_parts.moment import Moment
from lightning_lopt.rules.residual_parts.restraint import Restraint
from lightning_lopt.rules.residual_parts.role_constants import RoleConstants
from lightning_lopt.rules.residual_parts.running_averages import accumulate, gradient_power, momentum_of
from lightning_lopt.rules.residual_parts.signals import AVERAGES, SIGNALS, average_loss, shared_signals, tensor_signals
from lightning_lopt.rules.residual_parts.step_direction import direction_of, has_role, update_of
from lightning_lopt.rules.residual_parts.structure import Signs, signs_of, trained
from lightning_lopt.rules.shared.arithmetic import rms

FIRST_TURNS = 20  # steps that all turn the eigenbases, which are far from their goal then


@register_rule("residual")
class ResidualRule(UpdateRule):
    r"""A hand-designed rule plus what meta-training adds to it; with fresh θ it *is* the hand-designed rule.

    .. math:: \Delta p = -\eta\, s(t)\, \big( \max(\mathrm{RMS}(p_0), \rho)\, (r / 0.3)^{\omega}\, d + \lambda p \big)

    - :math:`d`, of RMS 1: for matrices the orthogonalised Nesterov momentum, for the other roles the bias-corrected
      Adam direction, or, where asked for, that direction in the eigenbases of the gradients' covariances
      (:mod:`~lightning_lopt.rules.residual_parts.eigenbasis`); each after an optional correction by an MLP;
    - in Adam's direction, entries of another sign than the gradient times 1 - c, as in cautious optimizers (Liang et
      al. 2024, https://arxiv.org/abs/2411.16085), but in the coordinates of its second moment;
    - :math:`r`, the coherence of the gradients: the RMS of Adam's direction, 1 where they agree and small where they
      are noise; the factor is 1 for orthogonalised tensors;
    - :math:`s(t)`: linear warm-up over 5 % of the horizon, then linear decay to 0;
    - :math:`\eta = 0.02`, :math:`\rho = 0.03`, and further constants, per role (:class:`RoleConstants`), c and
      :math:`\omega` (0 at first) among them, times the outputs of a recurrent :class:`Controller` for each tensor;
    - if it is calibrated, all of it times factors that follow from the run itself (:class:`Calibration`).

    The step is relative to the RMS of the tensor at initialisation: relative to the present one it would feed on
    itself. Multiplying the loss by a constant, or adding one to it, leaves the run unchanged: the first
    gradient sets the unit of all gradients, and only a controller reads the loss. Losses on held-out data change the
    steps by their rise (:mod:`~lightning_lopt.rules.residual_parts.validation`).

    Args:
        direction: learn a per-parameter correction of the direction.
        controller: learn step size, weight decay and momentum mix per tensor; the rule then reads the loss.
        orthogonalised: roles whose direction is orthogonalised; an empty list for none.
        rotated: roles whose direction is Adam's in the eigenbases of the gradients; none of them orthogonalised.
        horizon_power: h before meta-training, for all roles: step sizes fall as :math:`((T + 1000) / 1500)^{-h}` with
            the horizon T, and weight decay with a power of its own; ``None`` for constants that do not depend on it.
        direction_hidden: width of the two hidden layers of the direction MLP.
        controller_hidden: size of the controller's recurrent state.
        step_range: largest factor by which the controller may change a step size, > 1.
        step_size: η before meta-training, for all roles, > 0.
        weight_decay: λ before meta-training, for all roles, > 0.
        calibrated: let the run calibrate its steps.
        turn_every: one step in how many turns the eigenbases of rotated roles, >= 1; each of the first 20 does.
        careful: shorten the steps of tensors that look trained (:mod:`~lightning_lopt.rules.residual_parts.structure`):
            the initial logarithm, for all roles, of what their steps are divided by, >= 0; they shorten further by a
            :class:`~lightning_lopt.rules.residual_parts.restraint.Restraint`. ``None`` treats all alike.
        epoch_power, depth_power: initial powers with which careful steps shorten with the number of epochs and of
            matrices; ``None`` for steps that do not depend on them.
        longest_side: a side of a rotated tensor that is longer than this, and than the other side, has no basis, > 0;
            in the role ``matrix`` directions are orthogonalised then
            (:func:`~lightning_lopt.rules.residual_parts.eigenbasis.out_evened`).
        reads_validation: where the validation loss rises, if the run passes it, shorten all steps, and go back to the
            parameters of its lowest value.

    Raises:
        ValueError: if a number is out of its range, or a role is unknown, or both orthogonalised and rotated.

    State bytes per parameter (float32): 4 for orthogonalised tensors without learned direction, else 8; 4 more if
    calibrated; for a rotated n x m matrix 8 (n² + m²) / (n m) more, 8 m / n where only m has a basis, and 4 more if
    directions are learned.

    FLOPs for a rotated n x n matrix: 12 n³ a step, and 36 n³ more in a step that turns; for an n x m matrix of which
    only m has a basis 8 m² n + 12 m³, and 14 m³ + 4 m² n more in a step that turns.

    Example:
        >>> rule = ResidualRule(direction=False, controller=False, rotated=("matrix",), orthogonalised=())
        >>> sum(value.numel() for value in rule.parameters()) < 100  # constants only: there is no network
        True
    """

    reads_horizon = True
    update_state = frozenset({"last_update"})
    _accumulate = staticmethod(accumulate)  # experiments override both
    _direction_of = staticmethod(direction_of)

    def __init__(
        self,
        direction: bool = True,
        controller: bool = True,
        orthogonalised: Sequence[str] = ("matrix",),
        direction_hidden: int = 8,
        controller_hidden: int = 16,
        step_range: float = 4.0,
        step_size: float = 0.02,
        weight_decay: float = 1e-3,
        calibrated: bool = False,
        rotated: Sequence[str] = (),
        horizon_power: float | None = None,
        turn_every: int = 1,
        longest_side: int = 1024,
        careful: float | None = None,
        epoch_power: float | None = None,
        depth_power: float | None = None,
        reads_validation: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"direction_hidden": direction_hidden, "controller_hidden": controller_hidden}
        check_sizes(**sizes, turn_every=turn_every, longest_side=longest_side)
        if not 1 < step_range < math.inf:
            raise ValueError(f"step_range must be a number above 1, got {step_range!r}.")
        check_positive(step_size=step_size, weight_decay=weight_decay)
        check_numbers(or_none=True, horizon_power=horizon_power)
        check_numbers(0.0, or_none=True, careful=careful, epoch_power=epoch_power, depth_power=depth_power)
        common = sorted(set(orthogonalised) & set(rotated))
        if common:
            raise ValueError(f"orthogonalised and rotated both name {', '.join(common)}; a role can be one of them.")
        self.config_values = {
            "direction": direction,
            "controller": controller,
            "orthogonalised": [check_role(role, "orthogonalised") for role in orthogonalised],
            **sizes,
            "step_range": step_range,
            "step_size": step_size,
            "weight_decay": weight_decay,
            "calibrated": calibrated,
            "rotated": [check_role(role, "rotated") for role in rotated],
            "horizon_power": horizon_power,
            "turn_every": turn_every,
            "longest_side": longest_side,
            "careful": careful,
            "epoch_power": epoch_power,
            "depth_power": depth_power,
            "reads_validation": reads_validation,
        }
        self.longest_side, self.period, self.controller_hidden = longest_side, turn_every, controller_hidden
        self.reads_loss, self.reads_validation, self.calibrates_steps = controller, reads_validation, calibrated
        self.orthogonalised, self.rotated = frozenset(orthogonalised), frozenset(rotated)
        self.constants = RoleConstants(step_size, weight_decay, rotated=bool(rotated), horizon_power=horizon_power)
        log_careful = torch.full((len(ROLES),), careful or 0.0, dtype=THETA_DTYPE)
        self.log_careful = None if careful is None else nn.Parameter(log_careful)
        self.direction = DirectionMLP(direction_hidden) if direction else None
        self.controller = Controller(SIGNALS, controller_hidden, step_range) if controller else None
        self.calibration = Calibration() if calibrated else None
        self.restraint = None if careful is None else Restraint(3.0, epoch_power, depth_power)

    def phase_of(self, step: int) -> int | None:
        return None if step < FIRST_TURNS else super().phase_of(step)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.config_values)

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        rotated = has_role(param, role, self.rotated)
        state = {"rotated_momentum" if rotated else "momentum": torch.zeros_like(param), "initial_rms": rms(param)}
        if self.direction is not None or not (rotated or has_role(param, role, self.orthogonalised)):
            state["second_moment"] = torch.zeros_like(param)
        if rotated:
            state["rotated_moment"] = torch.zeros_like(param)
            state |= init_bases(param, self.longest_side)
        if self.controller is not None:
            state |= {"hidden": param.new_zeros(self.controller_hidden), "gradient_power": param.new_zeros(())}
        if self.log_careful is not None:
            state["structure"] = torch.stack(signs_of(param, role))
        if self.calibration is not None:
            state |= {"last_update": torch.zeros_like(param), "log_factor": param.new_zeros(())}
        return state

    def init_shared(self, like: Tensor) -> dict[str, Tensor]:
        shared = {"gradient_unit": like.new_zeros(())}
        if self.controller is not None:
            shared["loss_averages"] = like.new_zeros(AVERAGES)
        if self.calibration is not None:
            shared["calibration"] = like.new_zeros(2)
        if self.restraint is not None:
            shared["gradient_size"] = like.new_zeros(3)
        if self.reads_validation:
            shared["validation"] = validation.blank_memory(like)
        return shared

    def at(self, shared: Mapping[str, Tensor], context: StepContext) -> Moment:
        constants, per_unit = self.constants.at(context), per_unit_of(shared["gradient_unit"])
        if self.controller is None:
            return Moment(constants, per_unit)
        averages = average_loss(shared["loss_averages"], context)
        return Moment(constants, per_unit, averages, shared_signals(averages, context))

    def summary(self, inputs: TensorInputs, at: Moment) -> Columns:
        param, grad, state = inputs.param, inputs.grad, inputs.state
        columns = dict(zip(("lowest", "highest"), extremes_of(grad), strict=True))
        last_updates = [] if self.calibration is None else [state["last_update"]]
        if last_updates or self.log_careful is not None:
            power, *promises = power_and_promises(grad, at.per_unit, last_updates)
        if self.calibration is not None:
            columns["log_factor"], columns["promise"] = state["log_factor"], promises[0]
        if self.log_careful is not None:
            columns |= {"power": power, "structure": state["structure"]}
            columns["careful"] = self.log_careful[ROLES.index(inputs.role)].to(grad.dtype)
        if self.controller is not None:
            assert at.signals is not None
            grad = in_unit(grad, at.per_unit)
            constants = at.constants[inputs.role]
            momentum = torch.lerp(momentum_of(state), grad, constants.momentum_rate.to(grad.dtype))
            arguments = param, grad, momentum, gradient_power(state, grad, constants), state["initial_rms"], inputs.role
            columns["hidden"] = state["hidden"]
            columns["signals"] = torch.cat([at.signals, tensor_signals(*arguments).to(at.signals.dtype)])
        return columns

    def exchange(
        self, columns: Columns, at: Moment, shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[Columns, dict[str, Tensor]]:
        controls, new_shared = {}, dict(shared)
        unit = unit_of(largest_of(columns["lowest"], columns["highest"]), shared["gradient_unit"])
        new_shared["gradient_unit"], controls["per_unit"] = unit, per_unit_of(unit).expand(len(columns["lowest"]))
        if self.controller is not None:
            assert at.loss_averages is not None
            new_shared["loss_averages"], dtype = at.loss_averages, self.controller.gate_weight.dtype
            changes, hidden = self.controller(columns["signals"].to(dtype), columns["hidden"].to(dtype))
            controls |= changes._asdict()
            controls["hidden"] = hidden.to(columns["hidden"].dtype)
        if self.calibration is not None:
            memory, factors, promises = shared["calibration"], columns["log_factor"], columns["promise"]
            common, new_shared["calibration"], factors = self.calibration(memory, factors, promises, context.step)
            controls["log_factor"], controls["calibrated"] = factors, torch.exp(common + factors)
        if self.restraint is not None:
            growth = validation.log_growth_of(shared["validation"]) if self.reads_validation else 0.0
            careful = self.restraint.factors(shared["gradient_size"], columns, at.per_unit, context.epochs, growth)
            controls["careful"], new_shared["gradient_size"] = careful
        if self.reads_validation:
            controls["validated"] = validation.factor_of(shared["validation"]).expand(len(columns["lowest"]))
        return controls, new_shared

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: Moment) -> tuple[Tensor, TensorState]:
        param, grad, constants = inputs.param, in_unit(inputs.grad, controls["per_unit"]), at.constants[inputs.role]
        is_last_use = self.direction is None
        state, basis_grad = self._accumulate(grad, inputs.state, constants, turn=inputs.full, overwrites=is_last_use)
        if self.controller is not None:
            constants = Controls(*(controls[name] for name in Controls._fields)).applied_to(constants)
            state["hidden"] = controls["hidden"].to(state["hidden"].dtype)
        for factor in ("calibrated", "careful", "validated"):
            if factor in controls:
                constants = constants._replace(step_size=constants.step_size * controls[factor])
        evened, orthogonal = inputs.role == "matrix", has_role(param, inputs.role, self.orthogonalised)
        direction, length = self._direction_of(
            param, grad, basis_grad, state, constants, evened=evened, orthogonal=orthogonal, correction=self.direction
        )
        length = length * torch.maximum(state["initial_rms"], constants.rms_floor)
        decay = constants.step_size * (constants.weight_decay + inputs.weight_decay)
        update = update_of(direction, length, param, decay)
        if self.calibration is not None:
            state |= {"last_update": update, "log_factor": controls["log_factor"].to(state["log_factor"].dtype)}
        return update, state

    def validated(self, state: State, loss: Tensor, progress: Tensor) -> State:
        if self.reads_validation:
            memory = validation.memory_after(state.shared["validation"], loss, progress)
            state = State(state.tensors, state.shared | {"validation": memory})
        return state

    def rollback(self, shared: dict[str, Tensor]) -> Rollback:
        return validation.rollback_of(shared["validation"]) if self.reads_validation else super().rollback(shared)

    def diagnostics(self, state: State) -> dict[str, Tensor]:
        """``calibration``: the common factor on all steps, 1 before the second step; ``validation``: the factor from
        validation losses; ``trained``: mean of the signs of training, 0 to 1. A part that is off has no entry."""
        values = {}
        if "calibration" in state.shared:
            values["calibration"] = torch.exp(state.shared["calibration"][0])
        if "validation" in state.shared:
            values["validation"] = validation.factor_of(state.shared["validation"])
        structures = [tensors["structure"] for tensors in state.tensors.values() if "structure" in tensors]
        if structures:
            values["trained"] = trained(Signs(*torch.stack(structures).unbind(-1))).mean()
        return values
