"""Watches a fit for missing steps, for steps that a gradient scaler skips, and for pretrained models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.optim.groups import members_of
from lightning_lopt.optim.pretrained_model import looks_pretrained, trained_shares
from lightning_lopt.rules.residual import ResidualRule
from lightning_lopt.wording import listed

RELATIVE_RULES = ("residual",)  # rules whose steps are relative to the size of a tensor


class ScalerWatch:
    """Counts steps that received a loss but were skipped by the gradient scaler."""

    def __init__(self) -> None:
        self._announced: dict[LearnedOptimizer, int] = {}
        self._calls: dict[LearnedOptimizer, int] = {}  # number of steps before the first announced step

    def before_step(self, optimizer: LearnedOptimizer) -> None:
        self._calls.setdefault(optimizer, optimizer.calls)
        self._announced[optimizer] = self._announced.get(optimizer, 0) + 1

    @property
    def skipped(self) -> dict[LearnedOptimizer, int]:
        """Number of steps that the gradient scaler skipped in this fit; it is valid only between two steps."""
        return {o: count - (o.calls - self._calls[o]) for o, count in self._announced.items()}


class StepWatch:
    """Warns if another optimizer trains the parameters of the learned optimizers.

    Args:
        optimizers: all learned optimizers of the fit.
    """

    def __init__(self, optimizers: Sequence[LearnedOptimizer]) -> None:
        self._calls = {optimizer: optimizer.calls for optimizer in optimizers}
        self._versions = self._sum_of_versions()
        self._is_over = not optimizers

    def look(self) -> None:
        """Check after a batch, until the first step was made."""
        if self._is_over:
            return
        if self._has_stepped():
            self._is_over = True
        elif self._sum_of_versions() != self._versions:
            self._is_over = True
            rank_zero_warn(
                "The parameters of the LearnedOptimizer change, but not by its steps: another optimizer than the one "
                "that configure_optimizers returns trains the module. Return the optimizer that trains it, or call "
                "self.optimizers().step()."
            )

    def look_at_the_end(self, batches: int) -> None:
        """Warn after the fit if no step was made."""
        if not self._is_over and batches and not self._has_stepped():
            rank_zero_warn(f"The LearnedOptimizer made no step in {batches} batches; call self.optimizers().step().")

    def _has_stepped(self) -> bool:
        return any(optimizer.calls != calls for optimizer, calls in self._calls.items())

    def _sum_of_versions(self) -> int:
        groups = (group for optimizer in self._calls for group in optimizer.param_groups)
        return sum(param._version for group in groups for param in group["params"])


@torch.no_grad()
def warn_if_pretrained(module: nn.Module, optimizers: Sequence[LearnedOptimizer]) -> None:
    """Warn if the steps of a rule are relative to the size of a tensor and the module looks pretrained.

    If the rule shortens the steps of such tensors (``careful``), there is a message instead of a warning.
    """
    for optimizer in optimizers:
        rule = optimizer.rule
        if isinstance(rule, ResidualRule) and rule.log_careful is not None:
            assert rule.restraint is not None
            epochs = None if optimizer.epochs is None else torch.tensor(optimizer.epochs)
            members = members_of(optimizer.param_groups, optimizer.labels)
            shares, depth = trained_shares(members, rule.restraint.repetition(epochs))
            names = [name for name, share in shares.items() if share > 0.5]
            if names:
                log_factor = float(rule.log_careful.max()) - float(rule.restraint.planned_factor(epochs, depth))
                planned = "an unknown number of" if epochs is None else f"{optimizer.epochs:.3g}"
                rank_zero_info(
                    f"{len(names)} of {len(shares)} tensors look pretrained ({listed(names)}), so rule "
                    f"{optimizer.rule_label!r} makes steps of such tensors up to {math.exp(log_factor):.0f} times "
                    f"shorter, for {planned} epochs; lr > 1 makes them longer."
                )
        elif rule.rule_name in RELATIVE_RULES:
            reason = looks_pretrained(module)
            if reason is not None:
                rank_zero_warn(
                    f"The module looks pretrained ({reason}). Rule {optimizer.rule_label!r} moves weights by an amount "
                    "relative to their size, about as far as from a random start, and may erase what they have "
                    "learned; use AdamW at a small rate for fine-tuning, or a small lr of the adapter."
                )
            return
