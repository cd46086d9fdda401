"""Statistics of an outer step: meta-loss by family, failures, signal-to-noise ratio, learned step sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.devices import sent
from lightning_lopt.meta.estimators.base import Estimate
from lightning_lopt.rules.base import ROLES, UpdateRule


class OuterStepStatistics:
    """Sums over the groups of one outer step, in one tensor, so that processes add them in one collective operation.

    Args:
        families: names of all task families.
        group_families: name of the family of each group.
        estimate: estimate of all groups together.
        inner_steps: inner steps of all groups together.

    Attributes:
        sums: inner steps, failures, sum of powers, number of groups; then the sums of meta-losses by family, then the
            numbers of meta-losses by family.
    """

    def __init__(
        self, families: Sequence[str], group_families: Sequence[str], estimate: Estimate, inner_steps: int
    ) -> None:
        self.families = tuple(dict.fromkeys(families))
        losses = estimate.meta_losses.float()
        members = torch.tensor([[float(name == family) for name in group_families] for family in self.families])
        counts = torch.tensor([float(inner_steps), float(len(group_families))])
        members, counts = sent(members, losses.device), sent(counts, losses.device)
        by_family = [members @ torch.nan_to_num(losses), members @ losses.isfinite().float()]
        totals = [counts[0], estimate.failures.sum(), estimate.powers.sum(), counts[1]]
        self.sums = torch.cat([torch.stack(totals), *by_family])

    @property
    def power(self) -> Tensor:
        """Mean squared norm of the independent terms of the gradient, 0-dim."""
        return self.sums[2] / self.sums[3]

    @property
    def meta_loss(self) -> Tensor:
        """Mean meta-loss over the groups, 0-dim; NaN if every run failed."""
        losses, counts = self.sums[4:].chunk(2)
        return losses.sum() / counts.sum()

    def by_family(self) -> dict[str, float]:
        """Mean meta-loss of each family that had a group, as ``meta_loss/...``."""
        losses, counts = (sums.tolist() for sums in self.sums[4:].chunk(2))
        means = zip(self.families, losses, counts, strict=True)
        return {f"meta_loss/{family}": loss / count for family, loss, count in means if count}


def signal_to_noise(norm: float, power: float, terms: int) -> float:
    r"""Norm of the mean of N independent terms, divided by the standard error of that mean.

    .. math:: \frac{\lVert \bar g \rVert}{\sqrt{(\overline{\lVert g_n \rVert^2} - \lVert \bar g \rVert^2) / (N - 1)}}

    The ratio is about 1 for pure noise.

    Args:
        norm: norm of the mean.
        power: mean squared norm of the terms.
        terms: number N of terms; for one term the result is NaN.

    >>> round(signal_to_noise(2.0, (1 + 4 + 9) / 3, 3), 3)  # the terms 1, 2 and 3
    3.464
    """
    if terms < 2:
        return math.nan
    variance = max(power - norm**2, 0.0) / (terms - 1)
    return norm / math.sqrt(variance) if variance > 0 else math.inf


def step_sizes(rule: UpdateRule) -> dict[str, float]:
    """Step sizes (learning rates) that are entries of θ; by role if the rule has a step size for each role."""
    sizes: dict[str, float] = {}
    for name, value in rule.named_parameters():
        entry = name.rsplit(".", 1)[-1]
        if entry == "log_step_size" and value.shape == (len(ROLES),):
            by_role = zip(ROLES, value.detach().exp().tolist(), strict=True)
            sizes |= {f"step_size/{role}": size for role, size in by_role}
        elif entry == "log_lr":
            sizes["step_size"] = float(value.detach().exp())
    return sizes
