"""Copies that no rule reads: those of a guard, and the weights and running statistics of the lowest validation loss."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.precision import real
from lightning_lopt.rules.contract.context import Rollback

GUARD_COPIES = ("guard_kept", "guard_candidate")
BEST_WEIGHTS = "best_weights"
COPIES = (*GUARD_COPIES, BEST_WEIGHTS)
"""Keys in the state of a parameter."""
STATISTICS = ("running_mean", "running_var")
"""Names of the buffers with which ``torch.nn`` normalises in evaluation mode; they depend on the present weights."""


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


def statistics_of(module: nn.Module | None) -> list[Tensor]:
    """The running statistics of the normalisation layers of a module, which fit the weights of that time.

    Other buffers, such as counters of steps, do not depend on the weights alone and are left out.

    >>> [tuple(x.shape) for x in statistics_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))]
    [(3,), (3,)]
    """
    buffers = () if module is None else module.named_buffers()
    return [buffer for name, buffer in buffers if name.rpartition(".")[2] in STATISTICS]


def roll_back_statistics(
    rollback: Rollback, is_back: bool, statistics: Sequence[Tensor], copies: Sequence[Tensor]
) -> list[Tensor]:
    """Copy the running statistics if the parameters are the best so far, or restore them if the parameters were.

    Args:
        rollback: as for :func:`roll_back`.
        is_back: result of :func:`roll_back`.
        statistics: the present running statistics.
        copies: copies of the last call; copies of another model are not restored.

    Returns:
        the copies for the next call.
    """
    if statistics and bool(rollback.is_best):
        return [values.clone() for values in statistics]
    if is_back and [copy.shape for copy in copies] == [values.shape for values in statistics]:
        for values, copy in zip(statistics, copies, strict=True):
            values.copy_(copy)
    return list(copies)
