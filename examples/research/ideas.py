"""Ideas of newer optimizers inside `base`, each with a constant that is 0 without it: entry 23 of LOG.md.

python examples/research/constants.py --data mnist10k.npz cifar10_16x16.npz --seeds 4 --change \
    ideas.slow_share+0.5,ideas.slow_growth+0.6 ideas.orthogonal_share+0.3 \
    constants.decay_taper+1,constants.log_weight_decay+0.3

Chosen was none of them; what they are compared with has moved on since, so figures differ from those of the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt import ResidualRule
from lightning_lopt.rules.arithmetic import orthogonalise, unit_rms
from lightning_lopt.rules.base import Params, Role, State, StepContext, Updates
from lightning_lopt.rules.role_constants import Constants, RoleConstants

SLOW = 20.0  # steps that the slow momentum remembers in the beginning


class Ideas(nn.Module):
    """The constants, 0-dim each.

    Attributes:
        slow_share: a of (m + a s) / (1 + a), which is the momentum where m was, with a slow one s (AdEMAMix).
        slow_growth: g of the 20 (1 + t / 20)^g steps that s remembers at step t.
        orthogonal_share: of a rotated direction, orthogonalised once more.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("slow_share", "slow_growth", "orthogonal_share"):
            setattr(self, name, nn.Parameter(torch.tensor(0.0)))


class TaperedConstants(RoleConstants):
    """Weight decay falls to 0 with the power ``decay_taper`` of what is left of the run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay_taper = nn.Parameter(torch.tensor(0.0))

    def at(self, context: StepContext) -> dict[Role, Constants]:
        left = torch.clamp((context.total_steps - context.scheduled_step) / context.total_steps, 1e-6, 1.0)
        factor = left**self.decay_taper
        return {role: at._replace(weight_decay=at.weight_decay * factor) for role, at in super().at(context).items()}


class WithIdeas(ResidualRule):
    """A rule without orthogonalised roles or a direction that is learned, and the ideas.

    Args:
        rule: the rule.
        orthogonal: whether any variant orthogonalises, which takes time.
    """

    def __init__(self, rule: ResidualRule, orthogonal: bool = False) -> None:
        config = rule.config
        super().__init__(**config)
        self.constants = TaperedConstants(
            config["step_size"],
            config["weight_decay"],
            rotated=bool(config["rotated"]),
            horizon_power=config["horizon_power"],
        )
        self.load_state_dict(rule.state_dict(), strict=False)
        self.ideas = Ideas()
        self.orthogonal = orthogonal

    def init_state(self, params: Params, roles: Mapping[str, Role]) -> State:
        state = super().init_state(params, roles)
        for own in state.tensors.values():
            own |= {"slow": torch.zeros_like(own["momentum"]), "slow_weight": own["momentum"].new_zeros(())}
        return state

    def forward(self, params: Params, grads: Params, state: State, context: StepContext) -> tuple[Updates, State]:
        self._now = context
        return super().forward(params, grads, state, context)

    def _accumulate(
        self, grad: Tensor, old: Mapping[str, Tensor], at: Constants, turn: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        new, inside = super()._accumulate(grad, old, at, turn)
        rate = 1 / (1 + SLOW * (1 + self._now.step / SLOW) ** self.ideas.slow_growth)
        new["slow"] = torch.lerp(old["slow"], grad, rate)
        new["slow_weight"] = torch.lerp(old["slow_weight"], torch.ones_like(rate), rate)
        return new, inside

    def _direction(
        self, param: Tensor, grad: Tensor, inside: Tensor, state: Mapping[str, Tensor], role: Role, at: Constants
    ) -> Tensor:
        share = self.ideas.slow_share
        mixed = state["momentum"] + share * at.momentum_weight * state["slow"] / state["slow_weight"]
        seen = {**state, "momentum": mixed / (1 + share)}
        direction = super()._direction(param, grad, inside, seen, role, at)
        if not (self.orthogonal and "rotated_moment" in state):
            return direction
        size = torch.sqrt(direction.square().mean())
        plain = unit_rms(direction)
        turned = unit_rms(orthogonalise(plain))
        return size * unit_rms(plain + self.ideas.orthogonal_share * (turned - plain))
