"""The type in which the state of a parameter is kept, and the wider one in which a rule sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.optim.guard_adamw import COPIES
from lightning_lopt.optim.rounding import rounded
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.contract.stacks import Stack

NARROW = torch.bfloat16


def checked_state_dtype(state_dtype: Any) -> torch.dtype | None:
    """The argument of an optimizer; ``None`` for float32, in which rules make their state anyway.

    Raises:
        ValueError: if it is neither ``None`` nor ``torch.float32`` nor ``torch.bfloat16``.
    """
    if state_dtype is None or state_dtype in (torch.float32, NARROW):
        return NARROW if state_dtype == NARROW else None
    raise ValueError(
        f"state_dtype must be torch.bfloat16, torch.float32 or None, got {state_dtype!r}; pass torch.bfloat16 to keep "
        "the state in half the memory, or leave state_dtype out."
    )


def narrowed(state: Mapping[str, Tensor], state_dtype: torch.dtype | None, rule: UpdateRule) -> dict[str, Tensor]:
    """The state of one parameter as it is kept: floating tensors of more than one entry in ``state_dtype``.

    What the rule names in :attr:`UpdateRule.exact_state`, the copies of a guard, numbers of one entry and integers stay
    as they are; everything does with ``None``.
    """
    if state_dtype is None:
        return dict(state)
    return {
        key: value.to(state_dtype)
        if value.is_floating_point() and value.numel() > 1 and key not in (*COPIES, *rule.exact_state)
        else value
        for key, value in state.items()
    }


def widened(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """State in the type of the arithmetic; what is not kept narrow stays as it is."""
    return {key: value.to(dtype) if value.dtype == NARROW else value for key, value in state.items()}


def converted(
    state: Mapping[str, Tensor], state_dtype: torch.dtype | None, rule: UpdateRule, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A saved state as it is kept: in ``state_dtype``, or with ``None`` in the type of the arithmetic, ``dtype``."""
    return widened(state, dtype) if state_dtype is None else narrowed(state, state_dtype, rule)


def rounded_like(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor], kept: Mapping[str, Tensor], seed: Tensor
) -> dict[str, Tensor]:
    """The state after a step, in the types of ``kept`` and rounded at random.

    Args:
        after: what the rule returned.
        before: what the rule was given, ``kept`` in wide types; tensors that the rule handed through are not rounded.
        kept: the state before the step.
        seed: 0-dim, of :func:`~lightning_lopt.optim.rounding.seeds_of`.
    """
    result = {key: kept[key] if value is before[key] else value for key, value in after.items()}
    changed = [key for key, value in result.items() if value.dtype != kept[key].dtype]
    if changed:
        result |= zip(changed, rounded([result[key] for key in changed], seed), strict=True)
    return result


def seen(stack: Stack) -> Stack:
    """A stack as a rule may look at it, with its state in wide types."""
    kept = stack.state
    is_narrow = any(value.dtype == NARROW for value in kept.values())
    return replace(stack, state=WideState(kept, stack.params.dtype)) if is_narrow else stack


class WideState(Mapping[str, Tensor]):
    """State that is widened where it is read, so that what is not read takes no memory."""

    def __init__(self, kept: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.kept, self.dtype = kept, dtype

    def __getitem__(self, key: str) -> Tensor:
        value = self.kept[key]
        return value.to(self.dtype) if value.dtype == NARROW else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)
