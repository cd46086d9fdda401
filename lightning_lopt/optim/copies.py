"""Copies that no rule reads: those of a guard, and the weights and running statistics of the lowest validation loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.precision import real
from lightning_lopt.rules.contract.context import Rollback

GUARD_COPIES = ("guard_kept", "guard_candidate")
BEST_WEIGHTS = "best_weights"
COPIES = (*GUARD_COPIES, BEST_WEIGHTS)
"""Keys in the state of a parameter."""
BEST_STATISTICS = "best_statistics"
"""Key in the first parameter group of a saved optimizer."""
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


def normalisation_layers(module: nn.Module | None, trained: Iterable[Tensor]) -> list[nn.Module]:
    """The layers of a module that have running statistics and that belong to trained parameters.

    A layer without parameters belongs to those of the smallest module around it that has any.

    Args:
        module: the model; ``None`` has no layers.
        trained: the trained parameters. Layers of other networks, such as averaged copies, are left out.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    >>> len(normalisation_layers(network, network.parameters())), len(normalisation_layers(network, []))
    (2, 0)
    """
    trained_ids, layers = {id(param) for param in trained}, dict[nn.Module, None]()

    def visit(layer: nn.Module, is_trained: bool) -> None:
        params = list(layer.parameters(recurse=False)) or list(layer.parameters())
        is_trained = any(id(param) in trained_ids for param in params) if params else is_trained
        if is_trained and any(layer._buffers.get(name) is not None for name in STATISTICS):
            layers[layer] = None
        for child in layer.children():
            visit(child, is_trained)

    if module is not None:
        visit(module, False)
    return list(layers)


def statistics_of(layers: Iterable[nn.Module]) -> list[Tensor]:
    """The running statistics of layers, without those that have no values yet."""
    buffers = [layer._buffers.get(name) for layer in layers for name in STATISTICS]
    return [x for x in buffers if x is not None and not is_lazy(x) and not x.is_meta]


def have_shapes_of(copies: Sequence[Tensor], statistics: Sequence[Tensor]) -> bool:
    """Whether copies can be restored: their number and shapes are those of the present statistics."""
    return [copy.shape for copy in copies] == [values.shape for values in statistics]
