"""The two forms of θ: a row of numbers for estimators, and tensors by name for calls of the rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.base import UpdateRule

Theta = dict[str, Tensor]


def theta_row(rule: UpdateRule) -> Tensor:
    """The D entries of θ that meta-training may change, in the order of the rule's parameters, shape ``(D,)``.

    The row is one tensor, so that an operation on θ launches one kernel instead of one for each parameter. The row
    is differentiable in the parameters of the rule.
    """
    return torch.cat([value.flatten() for value in _trainable(rule).values()])


def named_theta(rows: Tensor, rule: UpdateRule) -> Theta:
    """The inverse of :func:`theta_row` for rows of shape ``(..., D)``: θ by name, shapes ``(..., *shape)``.

    >>> from lightning_lopt import AdamRule
    >>> rule = AdamRule()
    >>> all(torch.equal(value, rule.get_parameter(name)) for name, value in named_theta(theta_row(rule), rule).items())
    True
    """
    theta = _trainable(rule)
    pieces = torch.split(rows, [value.numel() for value in theta.values()], dim=-1)
    return {
        name: piece.reshape((*rows.shape[:-1], *value.shape)).to(value.dtype).contiguous()
        for (name, value), piece in zip(theta.items(), pieces, strict=True)
    }


def stacked_theta(rules: Sequence[UpdateRule], seeds: int) -> Theta:
    """θ of several rules of one class and config, each repeated for ``seeds`` runs: leading axis ``rules x seeds``."""
    return {
        name: torch.stack([rule.get_parameter(name).detach() for rule in rules]).repeat_interleave(seeds, 0)
        for name, _ in rules[0].named_parameters()
    }


def _trainable(rule: UpdateRule) -> Theta:
    return {name: value for name, value in rule.named_parameters() if value.requires_grad}
