"""Measurement of rules in comparison with tuned baselines on problems, and a report of the results.

Example:
    >>> from lightning_lopt import AdamRule
    >>> from lightning_lopt.evaluation import Baselines, Problem, evaluate
    >>> from lightning_lopt.tasks import Quadratic
    >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=20)
    >>> results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=Baselines(seeds=1))
    >>> results.problems[0].log_ratio("mine", "adam_default") < 0  # a larger learning rate ends lower on this problem
    True

``write_report(results, "folder")`` then writes a page, its pictures and the results as JSON. The problems may come from
a suite, for instance ``make_suite("small")``, or from any list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lopt._lazy import lazily

if TYPE_CHECKING:
    from lightning_lopt.evaluation.baselines import Baselines
    from lightning_lopt.evaluation.comparison import compare
    from lightning_lopt.evaluation.evaluator import evaluate
    from lightning_lopt.evaluation.measurement import Measurement, Problem
    from lightning_lopt.evaluation.report import write_report
    from lightning_lopt.evaluation.results import ProblemResult, Results, RuleRecord
    from lightning_lopt.evaluation.suites import SUITES, make_suite

__all__ = [
    "SUITES",
    "Baselines",
    "Measurement",
    "Problem",
    "ProblemResult",
    "Results",
    "RuleRecord",
    "compare",
    "evaluate",
    "make_suite",
    "write_report",
]

# A name is searched in the modules from left to right; modules with a short import time come first.
__getattr__ = lazily(__name__, ("measurement", "results", "baselines", "comparison", "evaluator", "suites", "report"))
