"""Ideas of newer optimizers inside `base`; a constant of 0 turns an idea off (entries 21 and 23 to 25 of LOG.md).

python examples/research/constants.py --data mnist10k.npz cifar10_16x16.npz --seeds 4 --change \
    ideas.slow_share+0.5,ideas.slow_growth+0.6 ideas.orthogonal_share+0.3 \
    constants.decay_taper+1,constants.log_weight_decay+0.3 ideas.own_caution+0.7 constants.momentum_horizon+0.5

`base` uses none of these ideas. `base` has changed since entries 21 and 23, so figures differ from those in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt import ResidualRule
from lightning_lopt.rules.base import ROLES, Role, StepContext, TensorState
from lightning_lopt.rules.residual_parts.eigenbasis import into_bases, out_of_bases
from lightning_lopt.rules.residual_parts.moment import Moment
from lightning_lopt.rules.residual_parts.role_constants import BEND, TYPICAL, Constants, RoleConstants, _grown, _weight
from lightning_lopt.rules.shared.arithmetic import TINY, orthogonalise, rms

SLOW = 20.0  # steps that the slow momentum covers at the start


class Ideas(nn.Module):
    """The constants, 0-dim each.

    Attributes:
        slow_share: a in (m + a s) / (1 + a), which replaces the momentum m; s is a slow momentum (AdEMAMix).
        slow_growth: g in 20 (1 + t / 20)^g, the number of steps that s covers at step t.
        orthogonal_share: share of the orthogonalised direction in a rotated direction.
        entry_power: p of the power 1 + p, which is applied to entries in the eigenbases; signs do not change.
        own_caution: share by which entries against the gradient are reduced, in the coordinates of the parameters.
        cautious_decay: share by which the learned weight decay is reduced in entries that the direction moves away from
            zero (Chen et al. 2025, https://arxiv.org/abs/2510.12402).
        momentum_coherence, moment_coherence: power of the recent coherence of a tensor (r / 0.3). The momentum, or the
            second moments and covariances, cover fewer steps with larger coherence, and more if gradients are noise.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in (
            "slow_share",
            "slow_growth",
            "orthogonal_share",
            "entry_power",
            "own_caution",
            "cautious_decay",
            "momentum_coherence",
            "moment_coherence",
        ):
            setattr(self, name, nn.Parameter(torch.tensor(0.0)))


class ConstantsWithIdeas(RoleConstants):
    """Constants of each role, and two constants of ideas, which are 0-dim and 0 without the idea.

    Weight decay falls to 0 with the power ``decay_taper`` of the remaining share of the run. With a horizon of T steps,
    the momentum covers ((T + 1000) / 1500)^h times as many steps, where h is ``momentum_horizon``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay_taper = nn.Parameter(torch.tensor(0.0))
        self.momentum_horizon = nn.Parameter(torch.tensor(0.0))

    def at(self, context: StepContext) -> dict[Role, Constants]:
        remaining = torch.clamp((context.total_steps - context.scheduled_step) / context.total_steps, 1e-6, 1.0)
        taper = remaining**self.decay_taper
        longer = self.momentum_horizon * torch.log((context.total_steps + BEND) / (TYPICAL + BEND))
        logits = _grown(self.logit_momentum + longer, self.momentum_growth, context)
        rates, weights = torch.sigmoid(-logits), _weight(logits, context)
        constants = super().at(context)
        return {
            role: constants[role]
            .with_momentum(constants[role].momentum_mix, weight)
            ._replace(weight_decay=constants[role].weight_decay * taper, momentum_rate=rate)
            for role, rate, weight in zip(ROLES, rates.unbind(), weights.unbind(), strict=True)
        }


class WithIdeas(ResidualRule):
    """A rule with the ideas.

    Args:
        rule: a rule without orthogonalised roles and without a learned direction.
        orthogonal: whether any variant orthogonalises, which takes time.
        powers: whether any variant applies a power to entries, which takes time.
    """

    def __init__(self, rule: ResidualRule, orthogonal: bool = False, powers: bool = False) -> None:
        config = rule.config
        super().__init__(**config)
        self.constants = ConstantsWithIdeas(
            config["step_size"],
            config["weight_decay"],
            rotated=bool(config["rotated"]),
            horizon_power=config["horizon_power"],
        )
        self.load_state_dict(rule.state_dict(), strict=False)
        self.ideas = Ideas()
        self.orthogonal, self.powers = orthogonal, powers

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        zero = param.new_zeros(())
        slow = {"slow": torch.zeros_like(param), "slow_weight": zero, "log_coherence": zero}
        return super().init_tensor(param, role) | slow

    def at(self, shared: Mapping[str, Tensor], context: StepContext) -> Moment:
        self._now = context
        return super().at(shared, context)

    def _accumulate(
        self, grad: Tensor, old: Mapping[str, Tensor], at: Constants, *, turn: bool, **memory: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        coherence = old["log_coherence"]
        momentum, moment = (power * coherence for power in (self.ideas.momentum_coherence, self.ideas.moment_coherence))
        at = at._replace(
            momentum_rate=_forgetful(at.momentum_rate, momentum),
            moment_rate=_forgetful(at.moment_rate, moment),
            rotated_rate=_forgetful(at.rotated_rate, moment),
        )
        next_state, inside = super()._accumulate(grad, old, at, turn=turn)
        rate = 1 / (1 + SLOW * (1 + self._now.step / SLOW) ** self.ideas.slow_growth)
        next_state["slow"] = torch.lerp(old["slow"], grad, rate)
        next_state["slow_weight"] = torch.lerp(old["slow_weight"], torch.ones_like(rate), rate)
        return next_state, inside

    def _direction_of(
        self, param: Tensor, grad: Tensor, inside: Tensor, state: dict[str, Tensor], at: Constants, **how: Any
    ) -> tuple[Tensor, Tensor]:
        share, key = self.ideas.slow_share, "rotated_momentum" if "rotated_momentum" in state else "momentum"
        slow = into_bases(state["slow"], state)
        mixed = state[key] + share * at.momentum_weight * slow / state["slow_weight"]
        mixed_state = {**state, key: mixed / (1 + share)}
        direction, length = super()._direction_of(param, grad, inside, mixed_state, at, **how)
        unit = at.step_size / length  # in this unit, the direction has the RMS (r / 0.3)^power
        coherence = torch.log(rms(direction) / unit + TINY) / at.coherence_power.clamp(min=0.1)  # r / 0.3
        state["log_coherence"] = torch.lerp(state["log_coherence"], coherence.clamp(-3.0, 1.3), 0.05)
        if self.orthogonal and "rotated_moment" in state:
            turned = _as_long(orthogonalise(direction), direction)
            direction = _as_long(direction + self.ideas.orthogonal_share * (turned - direction), direction)
        if self.powers:
            entries = into_bases(direction, state)
            powers = torch.sign(entries) * entries.abs() ** (1 + self.ideas.entry_power)
            direction = _as_long(direction + out_of_bases(powers - entries, state), direction)
        against = torch.where(direction * grad < 0, self.ideas.own_caution, 0.0)
        direction = _as_long((1 - against) * direction, direction)
        # The update is -step_size (scale direction + weight_decay param).
        decay = at.weight_decay / torch.maximum(state["initial_rms"], at.rms_floor) * param
        return direction - self.ideas.cautious_decay * unit * torch.where(direction * param < 0, decay, 0.0), length


def _forgetful(rate: Tensor, power: Tensor) -> Tensor:
    """The rate of an average that covers exp(-power) times as many steps as the average with ``rate``."""
    return rate * torch.exp(power) / (1 + rate * torch.expm1(power))


def _as_long(x: Tensor, other: Tensor) -> Tensor:
    """``x`` with the RMS of ``other``."""
    return x * (rms(other) / rms(x))
