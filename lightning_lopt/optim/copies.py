"""Copies of a parameter in its state that no rule reads: the copies of a guard, and the weights of the lowest loss."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.precision import real
from lightning_lopt.rules.contract.context import Rollback

GUARD_COPIES = ("guard_kept", "guard_candidate")
BEST_WEIGHTS = "best_weights"
COPIES = (*GUARD_COPIES, BEST_WEIGHTS)
"""Keys in the state of a parameter."""


def without_copies(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter without copies."""
    return {key: value for key, value in state.items() if key not in COPIES}


def roll_back(
    rollback: Rollback, members: Sequence[Member], states: Mapping[Tensor, MutableMapping[str, Tensor]]
) -> bool:
    """Copy the parameters if they are the best so far, or restore the last copy if a rollback is due.

    Args:
        rollback: result of :meth:`UpdateRule.rollback`; reading it waits for the device.
        members: all parameters of an optimizer; parameters without state have not been trained and do not change.
        states: state of the parameters, which includes the copies.

    Returns:
        whether all trained parameters were restored. None is restored if one of them joined later and has no copy.
    """
    trained = [(real(member.param.detach()), states[member.param]) for member in members if states.get(member.param)]
    if bool(rollback.is_best):
        for param, state in trained:
            if BEST_WEIGHTS in state:
                state[BEST_WEIGHTS].copy_(param)
            else:
                state[BEST_WEIGHTS] = param.clone()
        return False
    is_back = bool(rollback.is_due) and bool(trained) and all(BEST_WEIGHTS in state for _, state in trained)
    if is_back:
        for param, state in trained:
            param.copy_(state[BEST_WEIGHTS])
    return is_back
