"""The flagship: a strong hand-designed rule, and small networks that start as its identity and learn the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.arguments import check_sizes
from lightning_lopt.rules.arithmetic import TINY, orthogonalise, rms, unit_rms
from lightning_lopt.rules.base import Params, Role, State, StepContext, UpdateRule, Updates, register_rule
from lightning_lopt.rules.calibration import Calibration
from lightning_lopt.rules.controller import Controller, Controls
from lightning_lopt.rules.direction import DirectionMLP
from lightning_lopt.rules.eigenbasis import follow, init_bases, into_bases, out_of_bases
from lightning_lopt.rules.role_constants import Constants, RoleConstants
from lightning_lopt.rules.roles import check_role, role_of_shape
from lightning_lopt.rules.signals import LOSS_DECAYS, SIGNALS, average_loss, temporal_signals

FIRST_TURNS = 20  # steps that all turn the eigenbases, which are far from where they belong then
TYPICAL_COHERENCE, LEAST_COHERENCE = 0.3, 0.01
NULL = 1e-10  # second moments below this share of a tensor's largest may be rounding: such entries take no step
OPPOSED = 0.01  # direction times gradient, both relative, at which caution is in full force: less is half rounding
GRADIENT_LIMIT = 1e15  # entries are clipped here, in the run's own unit, so that squares stay finite in float32
SMALLEST_UNIT = 2.0**-100  # of gradients


@register_rule("residual")
class ResidualRule(UpdateRule):
    r"""A hand-designed rule plus what meta-training adds to it; with fresh θ it *is* the hand-designed rule.

    .. math:: \Delta p = -\eta\, s(t)\, \big( \max(\mathrm{RMS}(p_0), \rho)\, (r / 0.3)^{\omega}\, d + \lambda p \big)

    - :math:`d`, of RMS 1: for matrices the orthogonalised Nesterov momentum, for the other roles the bias-corrected
      Adam direction, or, where asked for, that direction in the eigenbases of the gradients' covariances
      (:mod:`~lightning_lopt.rules.eigenbasis`); each after an optional correction by a per-parameter MLP;
    - in Adam's direction, entries of another sign than the gradient times 1 - c, as in cautious optimizers (Liang et
      al. 2024, https://arxiv.org/abs/2411.16085), but in the coordinates of its second moment;
    - :math:`r`, the coherence of the gradients: the RMS of Adam's direction, 1 where they agree and small where they
      are noise; the factor is 1 for orthogonalised tensors;
    - :math:`s(t)`: linear warm-up over 5 % of the horizon, then linear decay to 0;
    - :math:`\eta = 0.02`, :math:`\rho = 0.03`, and further constants, per role (:class:`RoleConstants`), c and
      :math:`\omega` (0 before meta-training) among them, times what a recurrent :class:`Controller` sets for each
      tensor;
    - if it is calibrated, all of it times factors that follow from the run itself (:class:`Calibration`).

    The step is relative to the RMS of the tensor at initialisation: relative to the present one it would feed on
    itself. Multiplying the loss by a constant, or adding one to it, leaves the run unchanged: gradients are taken in a
    unit that the first of them sets, and only a controller reads the loss.

    Args:
        direction: learn a per-parameter correction of the direction.
        controller: learn step size, weight decay and momentum mix per tensor; the rule then reads the loss.
        orthogonalised: roles whose direction is orthogonalised; an empty list for none.
        rotated: roles whose direction is Adam's in the eigenbases of the gradients; none of them orthogonalised.
        horizon_power: h before meta-training, for all roles: step sizes fall as :math:`((T + 1000) / 1500)^{-h}` with
            the horizon T, and weight decay by a power of its own, 1 before meta-training; ``None`` for constants that
            do not depend on it.
        direction_hidden: width of the two hidden layers of the direction MLP.
        controller_hidden: size of the controller's recurrent state.
        step_range: largest factor by which the controller may change a step size, > 1.
        step_size: η before meta-training, for all roles, > 0.
        weight_decay: λ before meta-training, for all roles, > 0.
        calibrated: let the run calibrate its steps.
        turn_every: one step in how many turns the eigenbases of rotated roles, >= 1; each of the first 20 does.

    Raises:
        ValueError: if a size or constant is not positive, ``step_range`` not above 1, or a role unknown or both
            orthogonalised and rotated.

    State bytes per parameter (float32): 4 for orthogonalised tensors without learned direction, else 8; 4 more if
    calibrated; for a rotated n x m matrix 8 (n² + m²) / (n m) more, and 4 more if directions are learned.

    FLOPs for a rotated n x n matrix: 16 n³ a step, and 28 n³ more in a step that turns.
    """

    reads_horizon = True

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
    ) -> None:
        super().__init__()
        check_sizes(direction_hidden=direction_hidden, controller_hidden=controller_hidden, turn_every=turn_every)
        if not 1 < step_range < math.inf:
            raise ValueError(f"step_range must be a number above 1, got {step_range!r}.")
        if horizon_power is not None and not math.isfinite(horizon_power):
            raise ValueError(f"horizon_power must be a number or None, got {horizon_power!r}.")
        for name, value in (("step_size", step_size), ("weight_decay", weight_decay)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        both = sorted(set(orthogonalised) & set(rotated))
        if both:
            raise ValueError(f"orthogonalised and rotated both name {', '.join(both)}; a role can be one of them.")
        self.config_values = {
            "direction": direction,
            "controller": controller,
            "orthogonalised": [check_role(role, "orthogonalised") for role in orthogonalised],
            "direction_hidden": direction_hidden,
            "controller_hidden": controller_hidden,
            "step_range": step_range,
            "step_size": step_size,
            "weight_decay": weight_decay,
            "calibrated": calibrated,
            "rotated": [check_role(role, "rotated") for role in rotated],
            "horizon_power": horizon_power,
            "turn_every": turn_every,
        }
        self.period = turn_every
        self.reads_loss = controller
        self.calibrates_steps = calibrated
        self.orthogonalised, self.rotated = frozenset(orthogonalised), frozenset(rotated)
        self.controller_hidden = controller_hidden
        self.constants = RoleConstants(step_size, weight_decay, rotated=bool(rotated), horizon_power=horizon_power)
        self.direction = DirectionMLP(direction_hidden) if direction else None
        self.controller = Controller(SIGNALS, controller_hidden, step_range) if controller else None
        self.calibration = Calibration() if calibrated else None

    def is_full(self, step: int) -> bool:
        return step < FIRST_TURNS or super().is_full(step)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.config_values)

    def init_state(self, params: Params, roles: Mapping[str, Role]) -> State:
        tensors = {}
        for name, param in params.items():
            own = {"momentum": torch.zeros_like(param), "initial_rms": rms(param)}
            role = roles.get(name, role_of_shape(tuple(param.shape)))
            rotated = _has_role(param, role, self.rotated)
            if self.direction is not None or not (rotated or _has_role(param, role, self.orthogonalised)):
                own["second_moment"] = torch.zeros_like(param)
            if rotated:
                own["rotated_moment"] = torch.zeros_like(param)
                own |= init_bases(param)
            if self.controller is not None:
                own["hidden"] = param.new_zeros(self.controller_hidden)
                own["gradient_power"] = param.new_zeros(())
            if self.calibration is not None:
                own |= {"last_update": torch.zeros_like(param), "log_factor": param.new_zeros(())}
            tensors[name] = own
        shared = {"gradient_unit": next(iter(params.values())).new_zeros(())} if params else {}
        if self.controller is not None and params:
            shared["loss_averages"] = next(iter(params.values())).new_zeros(len(LOSS_DECAYS))
        if self.calibration is not None and params:
            shared["calibration"] = next(iter(params.values())).new_zeros(2)
        return State(tensors, shared)

    def forward(self, params: Params, grads: Params, state: State, context: StepContext) -> tuple[Updates, State]:
        if not grads:
            return {}, state
        roles = {name: context.roles.get(name, role_of_shape(tuple(params[name].shape))) for name in grads}
        of_role = self.constants.at(context)
        constants = {name: of_role[role] for name, role in roles.items()}
        shared = dict(state.shared)
        grads, shared["gradient_unit"] = _in_own_unit(grads, shared["gradient_unit"])
        tensors, inside = {}, {}
        for name, grad in grads.items():
            at = constants[name]
            tensors[name], inside[name] = self._accumulate(grad, state.tensors[name], at, context.full)
        if self.controller is not None:
            shared["loss_averages"] = average_loss(shared["loss_averages"], context)
            signals = temporal_signals(params, grads, tensors, shared["loss_averages"], roles, context)
            dtype = self.controller.gate_weight.dtype
            hidden = torch.stack([tensors[name]["hidden"].to(dtype) for name in grads])
            controls, hidden = self.controller(signals.to(dtype), hidden)
            for row, name in enumerate(grads):
                constants[name] = _controlled(constants[name], Controls(*(control[row] for control in controls)))
                tensors[name]["hidden"] = hidden[row].to(params[name].dtype)
        if self.calibration is not None:
            last = {name: state.tensors[name]["last_update"] for name in grads}
            own = {name: state.tensors[name]["log_factor"] for name in grads}
            common, shared["calibration"], own = self.calibration(shared["calibration"], own, grads, last, context.step)
            for name, at in constants.items():
                constants[name] = at._replace(step_size=at.step_size * torch.exp(common + own[name]))
        updates = {}
        for name, at in constants.items():
            param = params[name]
            direction = self._direction(param, grads[name], inside[name], tensors[name], roles[name], at)
            scale = torch.maximum(tensors[name]["initial_rms"], at.rms_floor)
            decay = at.weight_decay + context.weight_decay.get(name, 0.0)
            update = (-at.step_size * scale) * direction - (at.step_size * decay) * param
            updates[name] = update.to(param.dtype)
            if self.calibration is not None:
                tensors[name] |= {"last_update": updates[name], "log_factor": own[name]}
        return updates, State(tensors, shared)

    def diagnostics(self, state: State) -> dict[str, Tensor]:
        """``calibration``: the common factor on all steps, 1 before the second step; nothing if not calibrated."""
        if "calibration" not in state.shared:
            return {}
        return {"calibration": torch.exp(state.shared["calibration"][0])}

    def _accumulate(
        self, grad: Tensor, old: Mapping[str, Tensor], at: Constants, turn: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The tensor's state with this gradient taken into its running averages, and the bases turned where asked; and
        the gradient in the coordinates of the direction."""
        moment_rate = at.moment_rate.to(grad.dtype)
        new, inside = dict(old), grad
        new["momentum"] = torch.lerp(old["momentum"], grad, at.momentum_rate.to(grad.dtype))
        if "second_moment" in old:
            new["second_moment"] = torch.lerp(old["second_moment"], grad.square(), moment_rate)
        if "rotated_moment" in old:
            rate = at.rotated_rate.to(grad.dtype)
            new |= follow(old, grad, rate, turn=turn)
            inside = into_bases(grad, new)
            new["rotated_moment"] = torch.lerp(old["rotated_moment"], inside.square(), rate)
        if "gradient_power" in old:
            new["gradient_power"] = torch.lerp(old["gradient_power"], grad.square().mean(), moment_rate)
        return new, inside

    def _direction(
        self, param: Tensor, grad: Tensor, inside: Tensor, state: Mapping[str, Tensor], role: Role, at: Constants
    ) -> Tensor:
        """The direction of the step, of RMS 1 times a power of its coherence (0 where momentum and gradient are)."""
        orthogonal, rotated = _has_role(param, role, self.orthogonalised), "rotated_moment" in state
        mix = at.momentum_mix.to(grad.dtype)
        momentum = (state["momentum"] / at.momentum_weight).to(grad.dtype)
        if rotated:
            moved = torch.lerp(inside, into_bases(momentum, state), mix)
            scale = _inverse_root(state["rotated_moment"], at.rotated_weight)
            direction = moved * scale
        else:
            direction = torch.lerp(grad, momentum, mix)
            if not orthogonal:
                scale = _inverse_root(state["second_moment"], at.moment_weight)
                direction = direction * scale
        if not orthogonal:
            # Above 1 is momentum of a time of larger gradients, long forgotten by the second moment.
            coherence = rms(direction).clamp(LEAST_COHERENCE, 1.0) / TYPICAL_COHERENCE
            against = (direction * inside * scale).clamp(-OPPOSED, 0.0)
            direction = torch.addcmul(direction, against * ((1 - at.against) / OPPOSED), direction)
        if rotated:
            direction = out_of_bases(direction, state)
        if self.direction is not None:
            direction = unit_rms(direction)
            own_scale = _inverse_root(state["second_moment"], at.moment_weight)
            adam, gradient = torch.lerp(grad, momentum, mix) * own_scale, grad * own_scale
            correction = self.direction((direction, unit_rms(adam), unit_rms(gradient), unit_rms(param)))
            alive = direction.square().mean()  # 1, or 0 without a gradient, which must not become a step
            direction = direction + alive * correction
        if orthogonal:
            return unit_rms(orthogonalise(direction))
        return unit_rms(direction) * torch.pow(coherence, at.coherence_power)


def _in_own_unit(grads: Params, unit: Tensor) -> tuple[Params, Tensor]:
    """Gradients in units of about the largest entry of the first of them that are not all zero, and that unit.

    ``unit`` is 0 before. Squares then do not underflow in float32 where the loss is small. It is a power of two, so no
    digit changes.
    """
    sizes = [torch.linalg.vector_norm(grad, math.inf) for grad in grads.values() if grad.numel() > 0]
    largest = torch.stack(sizes).max().detach() if sizes else unit
    found = torch.exp2(torch.floor(torch.log2(largest.clamp(SMALLEST_UNIT, 1 / SMALLEST_UNIT))))
    unit = torch.where((unit == 0) & (largest > 0), found.to(unit.dtype), unit)
    factor = torch.where(unit == 0, 1.0, 1 / unit)
    scaled = {name: grad * factor.to(grad.dtype) for name, grad in grads.items()}
    return {name: grad.clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT) for name, grad in scaled.items()}, unit


def _controlled(at: Constants, controls: Controls) -> Constants:
    """The constants as the controller changes them for one tensor."""
    return at._replace(
        step_size=at.step_size * controls.step_factor,
        weight_decay=at.weight_decay * controls.decay_factor,
        momentum_mix=at.momentum_mix + controls.mix_shift,
    )


def _inverse_root(moment: Tensor, weight: Tensor) -> Tensor:
    r"""What Adam's direction is multiplied with: :math:`\sqrt{v} / (v + \epsilon \max v)`, v without its bias to zero.

    That is :math:`1 / \sqrt{v}`, but falls to 0 where v is null beside the tensor's largest: float32 rounds to 1e-7 of
    the largest gradient, and rounding must not become an entry of full size.
    """
    moment = moment / weight + TINY  # TINY: the root has a derivative where no gradient has been
    largest = moment.amax() if moment.numel() else moment.new_zeros(())
    return torch.sqrt(moment) / torch.add(moment, largest, alpha=NULL)


def _has_role(param: Tensor, role: Role, roles: frozenset[str]) -> bool:
    """Whether a tensor is treated as a matrix of one of these roles."""
    return param.ndim >= 2 and role in roles
