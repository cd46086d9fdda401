"""Comparison of rules with each other and with tuned baselines on problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.evaluator import check_names, measurements_on
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.results import ProblemResult
from lightning_lopt.evaluation.suites import named_problems
from lightning_lopt.rules.base import UpdateRule


def compare(
    rules: Mapping[str, UpdateRule],
    problems: str | Sequence[Problem],
    *,
    baselines: Baselines,
    against: str | Sequence[str] = ("adamw",),
    seed: int = 0,
) -> Iterator[ProblemResult]:
    """One result for each problem, as soon as it is computed; all rules have the same models and mini-batches.

    This function is the fast comparison of rules that differ only in θ, for instance rules during meta-training: rules
    of one class and config run side by side. :func:`~lightning_lopt.evaluation.evaluate` measures one rule at a time,
    because it stores each measurement separately, and times the steps.

    Args:
        rules: rules by name; they are not changed.
        problems: a list of problems, the name of a suite, or ``FILE.py:NAME`` for a suite of the user.
        baselines: source of the tuned baselines; the rules have the same number of seeds and the same device.
        against: names of baselines, or one name.
        seed: seed of models and mini-batches of the rules.

    Raises:
        ValueError: if there is nothing to measure, or a name is unknown or used twice.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, Problem
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl, rules = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10), {"mine": AdamRule(0.1)}
        >>> baselines = Baselines(seeds=1, shipped=False)
        >>> for result in compare(rules, [bowl], baselines=baselines, against=["adam_default"]):
        ...     print(result.name, result.log_ratio("mine", "adam_default") < 0)
        bowl True
    """
    against = (against,) if isinstance(against, str) else against
    problems = named_problems(problems) if isinstance(problems, str) else problems
    check_names(rules, problems, against)
    for problem in problems:
        measurements = measurements_on(problem, (*rules, *against), rules, baselines, seed=seed)
        yield ProblemResult.of(problem, measurements)


def score(results: Sequence[ProblemResult], name: str, reference: str) -> float:
    """Mean log-ratio over problems and both splits; it is below 0 if ``name`` is better than ``reference``."""
    return fmean(result.log_ratio(name, reference, split) for result in results for split in ("train", "valid"))
