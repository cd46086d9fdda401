"""The type in which the state of a parameter is stored, and the wider type in which a rule reads the state."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.copies import COPIES
from lightning_lopt.optim.rounding import rounded
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.rules.shared.blocks import is_large

NARROW = torch.bfloat16


def checked_state_dtype(state_dtype: Any) -> torch.dtype | None:
    """The argument ``state_dtype`` of an optimizer; ``None`` for float32, the type in which rules make their state.

    Raises:
        ValueError: if ``state_dtype`` is neither ``None`` nor ``torch.float32`` nor ``torch.bfloat16``.
    """
    if state_dtype is None or state_dtype in (torch.float32, NARROW):
        return NARROW if state_dtype == NARROW else None
    raise ValueError(
        f"state_dtype must be torch.bfloat16, torch.float32 or None, got {state_dtype!r}; pass torch.bfloat16 to keep "
        "the state in half the memory, or leave state_dtype out."
    )


def narrowed(state: Mapping[str, Tensor], state_dtype: torch.dtype | None, rule: UpdateRule) -> dict[str, Tensor]:
    """The stored state of one parameter: floating tensors of more than one entry have the type ``state_dtype``.

    Keys in :attr:`UpdateRule.exact_state`, copies of parameters, tensors of one entry and integers keep their type;
    with ``None`` all tensors keep their type.
    """
    if state_dtype is None:
        return dict(state)
    return {
        key: value.to(state_dtype)
        if value.is_floating_point() and value.numel() > 1 and key not in (*COPIES, *rule.exact_state)
        else value
        for key, value in state.items()
    }


def widened(state: Mapping[str, Tensor], dtype: torch.dtype, *, large: bool = True) -> dict[str, Tensor]:
    """State in ``dtype``, the type of the arithmetic; tensors that are not bfloat16 keep their type, and without
    ``large`` those that are computed in blocks, too."""
    return {
        key: value.to(dtype) if value.dtype == NARROW and (large or not is_large(value)) else value
        for key, value in state.items()
    }


def converted(
    state: Mapping[str, Tensor], state_dtype: torch.dtype | None, rule: UpdateRule, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A loaded state in its stored types: floating tensors have the type ``dtype`` of the arithmetic, or
    ``state_dtype`` where :func:`narrowed` applies it, whatever their saved type. Copies of parameters keep their type.
    """
    typed = {k: v.to(dtype) if v.is_floating_point() and k not in COPIES else v for k, v in state.items()}
    return narrowed(typed, state_dtype, rule)


def changed_keys(new_state: Mapping[str, Tensor], wide_state: Mapping[str, Tensor]) -> set[str]:
    """Keys whose tensor in the new state is not the same object as in the state that the rule received."""
    return {key for key, value in new_state.items() if value is not wide_state[key]}


def rounded_like(
    new_state: Mapping[str, Tensor],
    changed: Collection[str],
    stored: Mapping[str, Tensor],
    seed: Tensor,
    *,
    reads: bool = True,
) -> dict[str, Tensor]:
    """The state after a step, in the types of ``stored`` and rounded at random.

    Args:
        new_state: the state that the rule returned.
        changed: keys of the tensors that are rounded, from :func:`changed_keys`; the others are taken from ``stored``.
        stored: the state before the step, in its stored types.
        seed: 0-dim, from :func:`~lightning_lopt.optim.rounding.seeds_of`.
        reads: as in :func:`~lightning_lopt.optim.rounding.rounded`.
    """
    result = {key: value if key in changed else stored[key] for key, value in new_state.items()}
    wider = [key for key, value in result.items() if value.dtype != stored[key].dtype]
    if wider:
        result |= zip(wider, rounded([result[key] for key in wider], seed, reads=reads), strict=True)
    return result


def with_wide_state(stack: Stack) -> Stack:
    """A stack that a rule can read, with its state in wide types."""
    stored = stack.state
    is_narrow = any(value.dtype == NARROW for value in stored.values())
    return replace(stack, state=WideState(stored, stack.params.dtype)) if is_narrow else stack


class WideState(Mapping[str, Tensor]):
    """State whose tensors are widened only when they are read, so that unread tensors take no additional memory."""

    def __init__(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.stored, self.dtype = stored, dtype

    def __getitem__(self, key: str) -> Tensor:
        value = self.stored[key]
        return value.to(self.dtype) if value.dtype == NARROW else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
