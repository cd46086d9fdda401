"""Optimizers in the form in which they are deployed, for measurements of what a step costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.sweeps import sweep_of
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import Role, UpdateRule

Leaves = Sequence[tuple[str, Tensor, Role]]
"""Trained tensors with their names and roles."""
Step = Callable[[], object]
"""Makes one step with the gradients that the tensors have."""


def learned(leaves: Leaves, rule: UpdateRule, loss: Callable[[], Tensor], total_steps: int, **options: Any) -> Step:
    """A step of :class:`~lightning_lopt.LearnedOptimizer`.

    Args:
        leaves: what is trained.
        rule: makes the steps; a rule with random weights costs what any other of its kind does.
        loss: gives the loss of the coming step, 0-dim.
        total_steps: planned steps.
        options: further arguments of ``LearnedOptimizer``.
    """
    groups = [
        {"params": [(name, leaf) for name, leaf, of_leaf in leaves if of_leaf == role], "role": role}
        for role in dict.fromkeys(role for _, _, role in leaves)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has random weights")
        optimizer = LearnedOptimizer(groups, rule, total_steps=total_steps, **options)
    return lambda: optimizer.step(loss=loss())


class MuonWithAdamW:
    """``torch.optim.Muon`` for hidden matrices, convolutions as (out, in x kernel), and AdamW for the rest."""

    def __init__(self, leaves: Leaves) -> None:
        hidden = [leaf for _, leaf, role in leaves if role == "matrix" and leaf.dim() >= 2]
        rest = [leaf for _, leaf, role in leaves if not (role == "matrix" and leaf.dim() >= 2)]
        self.matrices = [(leaf, leaf.detach().flatten(1).requires_grad_()) for leaf in hidden]
        self.optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            self.optimizers.append(torch.optim.Muon([matrix for _, matrix in self.matrices]))
        if rest:
            self.optimizers.append(torch.optim.AdamW(rest, foreach=True))

    def __call__(self) -> None:
        for leaf, matrix in self.matrices:  # views of parameters and gradients
            matrix.grad = None if leaf.grad is None else leaf.grad.flatten(1)
        for optimizer in self.optimizers:
            optimizer.step()


def tensors_of(leaves: Leaves) -> list[Tensor]:
    """The tensors alone."""
    return [leaf for _, leaf, _ in leaves]


def _adamw(leaves: Leaves) -> Step:
    return torch.optim.AdamW(tensors_of(leaves), foreach=True).step


IN_TORCH: dict[str, Callable[[Leaves], Step]] = {
    "adamw": _adamw,
    "adamw_1e-3": _adamw,
    "adamw_warmup": _adamw,
    "adamw_default": _adamw,
    "adam_default": lambda leaves: torch.optim.Adam(tensors_of(leaves), foreach=True).step,
    "sgd": lambda leaves: torch.optim.SGD(tensors_of(leaves), momentum=0.9, nesterov=True, lr=1e-3, foreach=True).step,
}
"""Baselines of :mod:`~lightning_lopt.evaluation.sweeps` as ``torch.optim`` has them."""
if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    IN_TORCH["muon"] = MuonWithAdamW


def baseline_steps(names: Sequence[str], leaves: Leaves, total_steps: int) -> tuple[dict[str, Step], dict[str, int]]:
    """Steps of those baselines that can be run here in the form in which they are deployed, and their periods.

    Args:
        names: of baselines.
        leaves: what is trained.
        total_steps: planned steps.
    """
    steps = {name: IN_TORCH[name](leaves) for name in names if name in IN_TORCH}
    periods = {}
    for name in names:
        packaged = sweep_of(name).packaged
        if packaged is not None and packaged.installed_version is not None:
            steps[name] = packaged.build(tensors_of(leaves), total_steps).step
            periods[name] = packaged.period
    return steps, periods
