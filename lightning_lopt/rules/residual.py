"""The flagship: a strong hand-designed rule with small networks that change nothing before meta-training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_numbers, check_positive, check_sizes
from lightning_lopt.rules.base import State, StepContext, TensorInputs, TensorState, UpdateRule, register_rule
from lightning_lopt.rules.contract.context import THETA_DTYPE, Columns, Rollback
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

FIRST_TURNS = 20  # number of first steps that all turn the eigenbases, which are still far from the eigenvectors


@register_rule("residual")
class ResidualRule(UpdateRule):
    r"""A hand-designed rule with learnable constants and networks; before meta-training it *is* the hand-designed rule.

    .. math:: \Delta p = -\eta\, s(t)\, \big( \max(\mathrm{RMS}(p_0), \rho)\, (r / 0.3)^{\omega}\, d + \lambda p \big)

    - The direction :math:`d` has RMS 1. It is the orthogonalised Nesterov momentum for roles in ``orthogonalised``,
      the bias-corrected Adam direction in the eigenbases of the gradients' covariances for roles in ``rotated``
      (:mod:`~lightning_lopt.rules.residual_parts.eigenbasis`), and Adam's direction for others. An MLP may correct it.
    - In Adam's direction, entries whose sign differs from the gradient's are multiplied by 1 - c, as in cautious
      optimizers (Liang et al. 2024, https://arxiv.org/abs/2411.16085), but in the coordinates of the second moment.
    - The coherence :math:`r` of the gradients is the RMS of Adam's direction: 1 where gradients agree, and small where
      they are noise. The factor is 1 for orthogonalised tensors.
    - The schedule :math:`s(t)` is a linear warm-up over 5 % of the horizon, then a linear decay to 0.
    - Each role has its constants (:class:`RoleConstants`): initially :math:`\eta = 0.02`, :math:`\rho = 0.03`, and 0
      for c and :math:`\omega`. A recurrent :class:`Controller` changes some of them for each tensor.
    - If ``calibrated``, steps are multiplied by factors that follow from the run itself (:class:`Calibration`).

    The step is relative to the RMS of the tensor at initialisation; relative to the present RMS, growth would cause
    more growth. Multiplying the loss by a constant, or adding a constant to it, leaves the run unchanged: the first
    gradient sets the unit of all gradients, and only a controller reads the loss. If the loss on held-out data
    rises, steps shorten (:mod:`~lightning_lopt.rules.residual_parts.validation`).

    Args:
        direction: learn a per-parameter correction of the direction.
        controller: learn step size, weight decay and momentum mix per tensor; the rule then reads the loss.
        orthogonalised: roles whose direction is orthogonalised; an empty list for none.
        rotated: roles whose direction is Adam's in the eigenbases of the gradients; they cannot be orthogonalised.
        horizon_power: h before meta-training, for all roles: step sizes fall as :math:`((T + 1000) / 1500)^{-h}` with
            the horizon T, and weight decay with a separate power; ``None`` for constants that do not depend on T.
        direction_hidden: width of the two hidden layers of the direction MLP.
        controller_hidden: size of the controller's recurrent state.
        step_range: largest factor by which the controller may change a step size, > 1.
        step_size: η before meta-training, for all roles, > 0.
        weight_decay: λ before meta-training, for all roles, > 0.
        calibrated: let the run calibrate its steps.
        turn_every: the eigenbases of rotated roles turn every so many steps, >= 1, and in each of the first 20 steps.
        careful: shorten the steps of tensors that look trained (:mod:`~lightning_lopt.rules.residual_parts.structure`).
            This is the initial logarithm, for all roles, of the divisor of their steps, >= 0. A further divisor is
            :class:`~lightning_lopt.rules.residual_parts.restraint.Restraint`. ``None`` turns both off.
        epoch_power, depth_power: initial powers with which careful steps shorten with the number of epochs and of
            matrices; ``None`` for steps that do not depend on them.
        longest_side: the longer side of a rotated tensor has a basis up to this length, > 0. In the role ``matrix``,
            directions with one basis are orthogonalised
            (:func:`~lightning_lopt.rules.residual_parts.eigenbasis.out_evened`).
        reads_validation: shorten all steps if the validation loss rises, and go back to the parameters of its
            lowest value; this has no effect in a run that passes no validation loss.

    Raises:
        ValueError: if a number is out of its range, a role is unknown, or a role is both orthogonalised and rotated.

    State bytes per parameter (float32): 4 for orthogonalised tensors without learned direction, else 8. Calibration
    adds 4. A rotated n x m matrix adds 8 (n² + m²) / (n m), or 8 m / n if only the side m has a basis; a learned
    direction adds 4 to it.

    FLOPs: a rotated n x n matrix takes 12 n³ a step, and 36 n³ more if the step turns the bases. An n x m matrix with
    a basis of the side m only takes 8 m² n + 12 m³, and 14 m³ + 4 m² n more if the step turns the basis.

    Example:
        >>> rule = ResidualRule(direction=False, controller=False, rotated=("matrix",), orthogonalised=())
        >>> sum(value.numel() for value in rule.parameters()) < 100  # constants only: there is no network
        True
    """

    reads_horizon = True
    update_state = frozenset({"last_update"})
    _accumulate = staticmethod(accumulate)  # experiments override these two methods
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
        conflicts = sorted(set(orthogonalised) & set(rotated))
        if conflicts:
            raise ValueError(f"orthogonalised and rotated both name {', '.join(conflicts)}; a role can be one of them.")
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
        self.stores = not (direction or controller)
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

    def has_full_steps(self, shape: torch.Size, role: Role) -> bool:
        return len(shape) >= 2 and role in self.rotated

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
        state, basis_grad = self._accumulate(
            grad, inputs.state, constants, turn=inputs.full, overwrites=is_last_use, store=inputs.store
        )
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
        """``calibration`` is the common factor on all steps, 1 before the second step; ``validation`` is the factor
        from validation losses; ``trained`` is the mean degree of training, 0 to 1. A part that is off has no entry."""
        values = {}
        if "calibration" in state.shared:
            values["calibration"] = torch.exp(state.shared["calibration"][0])
        if "validation" in state.shared:
            values["validation"] = validation.factor_of(state.shared["validation"])
        structures = [tensors["structure"] for tensors in state.tensors.values() if "structure" in tensors]
        if structures:
            values["trained"] = trained(Signs(*torch.stack(structures).unbind(-1))).mean()
        return values
