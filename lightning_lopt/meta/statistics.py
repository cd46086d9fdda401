"""What an outer step tells about itself: meta-loss by family, failures, signal-to-noise, learned step sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.meta.estimators.base import Estimate
from lightning_lopt.rules.base import ROLES, UpdateRule


class Tally:
    """Sums over the groups of one outer step, all in one tensor: processes add theirs up in a single exchange.

    Args:
        families: names of the task families that groups may train on.

    Attributes:
        sums: inner steps, failures, powers, groups; then for each family the sum of meta-losses, then their number.
    """

    def __init__(self, families: Sequence[str], device: torch.device) -> None:
        self.families = tuple(dict.fromkeys(families))
        self.sums = torch.zeros(4 + 2 * len(self.families), device=device)

    def add(self, family: str, estimate: Estimate, inner_steps: int) -> None:
        """Count one group."""
        where, count = 4 + self.families.index(family), len(self.families)
        self.sums[0] += inner_steps
        self.sums[1] += estimate.failures
        self.sums[2] += estimate.power
        self.sums[3] += 1
        self.sums[where] += torch.nan_to_num(estimate.meta_loss)
        self.sums[where + count] += estimate.meta_loss.isfinite()

    def metrics(self) -> dict[str, float]:
        """Means and totals by name; only families that had a group, and NaN as meta-loss if every run failed."""
        inner_steps, failures, power, groups, *rest = self.sums.tolist()
        losses, counts = rest[: len(self.families)], rest[len(self.families) :]
        overall = sum(losses) / sum(counts) if sum(counts) else math.nan
        metrics = {"inner_steps": inner_steps, "failures": failures, "power": power / groups, "meta_loss": overall}
        for family, loss, count in zip(self.families, losses, counts, strict=True):
            if count:
                metrics[f"meta_loss/{family}"] = loss / count
        return metrics


def signal_to_noise(norm: float, power: float, terms: int) -> float:
    r"""Norm of the mean of N independent terms over the standard error of that mean.

    .. math:: \frac{\lVert \bar g \rVert}{\sqrt{(\overline{\lVert g_n \rVert^2} - \lVert \bar g \rVert^2) / (N - 1)}}

    About 1 where there is nothing but noise.

    Args:
        norm: of the mean.
        power: mean squared norm of the terms.
        terms: their number N; for one term the result is NaN.

    >>> round(signal_to_noise(2.0, (1 + 4 + 9) / 3, 3), 3)  # the terms 1, 2 and 3
    3.464
    """
    if terms < 2:
        return math.nan
    variance = max(power - norm**2, 0.0) / (terms - 1)
    return norm / math.sqrt(variance) if variance > 0 else math.inf


def step_sizes(rule: UpdateRule) -> dict[str, float]:
    """Step sizes (learning rates) that are entries of θ: by role where the rule has one for each role."""
    sizes: dict[str, float] = {}
    for name, value in rule.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last == "log_step_size" and value.shape == (len(ROLES),):
            by_role = zip(ROLES, value.detach().exp().tolist(), strict=True)
            sizes |= {f"step_size/{role}": size for role, size in by_role}
        elif last == "log_lr":
            sizes["step_size"] = float(value.detach().exp())
    return sizes


def total_norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt())
