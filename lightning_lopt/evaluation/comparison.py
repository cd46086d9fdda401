"""Rules side by side on a suite, beside tuned AdamW: final losses, and their ratios on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.runs import run_rules
from lightning_lopt.rules.base import UpdateRule

FLOOR = 0.01  # in units of the task's loss_scale: below it, lower is hardly better
ADAMW = "tuned AdamW"


@dataclass(frozen=True)
class Row:
    """Final losses on one problem.

    Attributes:
        problem: its name.
        loss_scale: loss of a model that knows nothing.
        train: for each optimizer, the loss on the training split after the last step, one for each seed.
        valid: the same on the validation split.
        horizon: inner steps of the runs.
        curves: for each rule, the median over seeds of the mini-batch loss, its mean over each window of the run (see
            :func:`~lightning_lopt.evaluation.measurement.window_ends`).
    """

    problem: str
    loss_scale: float
    train: dict[str, list[float]]
    valid: dict[str, list[float]]
    horizon: int
    curves: dict[str, list[float]]

    def log_ratio(self, name: str, reference: str, split: str = "train") -> float:
        r"""Median over seeds of :math:`\log \frac{L + f s}{R + f s}`: below 0 where ``name`` ends below ``reference``.

        f is :data:`FLOOR` and s the loss scale; a loss that is not finite, or above 1.5 s, counts as 1.5 s.
        """
        losses = self.train if split == "train" else self.valid
        levels = [torch.log(_capped(losses[which], self.loss_scale) + FLOOR) for which in (name, reference)]
        return float((levels[0] - levels[1]).median())


def _capped(losses: Sequence[float], scale: float) -> Tensor:
    relative = torch.tensor(losses, dtype=torch.float64) / scale
    return torch.where(relative.isfinite(), relative, 1.5).clamp(0.0, 1.5)


def compare(
    rules: Mapping[str, UpdateRule], problems: Sequence[Problem], *, baselines: Baselines, seed: int = 0
) -> Iterator[Row]:
    """One row for each problem, as soon as it is there; every rule sees the same models and mini-batches.

    Args:
        rules: by name; those of one class and config run side by side.
        problems: what to solve.
        baselines: where tuned AdamW comes from; its number of seeds is used for the rules too.
        seed: of models and mini-batches.
    """
    for problem in problems:
        measured: dict[str, Measurement] = {}
        for names in _alike(rules):
            chosen = [rules[name] for name in names]
            runs = run_rules(chosen, problem, seeds=baselines.seeds, seed=seed)
            measured |= dict(zip(names, runs, strict=True))
        adamw = baselines(problem, "adamw")
        yield Row(
            problem.name,
            problem.task.loss_scale,
            {name: run.final_train.tolist() for name, run in measured.items()} | {ADAMW: adamw.final_train.tolist()},
            {name: run.final_valid.tolist() for name, run in measured.items()} | {ADAMW: adamw.final_valid.tolist()},
            problem.horizon,
            {name: run.train.median(1).values.tolist() for name, run in measured.items()},
        )


def _alike(rules: Mapping[str, UpdateRule]) -> list[list[str]]:
    """Names of rules that differ in θ alone."""
    groups: dict[str, list[str]] = {}
    for name, rule in rules.items():
        groups.setdefault(f"{type(rule).__qualname__} {rule.config}", []).append(name)
    return list(groups.values())


def score(rows: Sequence[Row], name: str, reference: str) -> float:
    """Mean log-ratio over problems and both splits: below 0 where ``name`` is better than ``reference``."""
    return fmean(row.log_ratio(name, reference, split) for row in rows for split in ("train", "valid"))


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Final losses as a markdown table: training / validation, medians over seeds, and the wins of the first name."""
    lines = ["| problem | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for row in rows:
        cells = [f"{median(row.train[name]):.4f} / {median(row.valid[name]):.4f}" for name in names]
        lines.append(f"| {row.problem} | " + " | ".join(cells) + " |")
    for split in ("train", "valid"):
        cells = []
        for other in names[1:]:
            ratios = [row.log_ratio(names[0], other, split) for row in rows]
            wins = sum(ratio < 0 for ratio in ratios)
            cells.append(f"{names[0]} lower on {wins} of {len(rows)}, mean log-ratio {fmean(ratios):+.3f}")
        lines.append(f"| {split} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)
