"""Measure rules beside tuned baselines on problems, and write a report.

Example:
    >>> from lightning_lopt import AdamRule
    >>> from lightning_lopt.evaluation import Baselines, Problem, evaluate
    >>> from lightning_lopt.tasks import Quadratic
    >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=20)
    >>> results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=Baselines(seeds=1))
    >>> results.problems[0].log_ratio("mine", "adam_default") < 0  # a larger learning rate ends lower on this problem
    True

Then ``write_report(results, "folder")`` writes a page, its pictures and the results as JSON. Problems are those of a
suite, ``make_suite("small")``, or any list of your own.
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

# A name is searched in the modules from left to right; modules whose import takes least time come first.
__getattr__ = lazily(__name__, ("measurement", "results", "baselines", "comparison", "evaluator", "suites", "report"))
