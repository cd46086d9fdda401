"""The results of an evaluation, from which a report is computed; ``results.json`` contains them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_lopt.evaluation.json_files import (
    as_list,
    as_name,
    as_object,
    as_positive,
    read_json,
    text_of,
    whole_of,
    write_json,
)
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics import PairedRuns, final_loss, log_ratio
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.rule_record import RuleRecord
from lightning_lopt.io.files import show
from lightning_lopt.seeding import generator

__all__ = ["ProblemResult", "Results", "RuleRecord"]

FORMAT = "lightning_lopt_results"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ProblemResult:
    """The measurements of optimizers on one problem.

    Attributes:
        name: name of the problem, unique among the results.
        horizon: inner steps of every run.
        loss_scale: loss of an uninformed model.
        measurements: measurements by optimizer; all have the same seeds.
        family: task family that could have drawn the problem, empty where there is none.
        data: name of its data, empty where it has none.
        parameters: number of parameters of the model.
        gradient_seconds: seconds of forward and backward of one mini-batch; ``None`` where not measured.
        step_seconds: seconds of one step of an optimizer in its deployed form, by name, where measured.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, evaluate
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> baselines = Baselines(seeds=1, shipped=False)
        >>> (result,) = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines).problems
        >>> result.name, sorted(result.measurements), result.log_ratio("mine", "adam_default") < 0
        ('bowl', ['adam_default', 'mine'], True)
    """

    name: str
    horizon: int
    loss_scale: float
    measurements: dict[str, Measurement]
    family: str = ""
    data: str = ""
    parameters: int = 0
    gradient_seconds: float | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)

    def log_ratio(self, name: str, reference: str, split: str = "train") -> float:
        r"""Median over seeds of :func:`~lightning_lopt.evaluation.metrics.log_ratio` of the final losses on a split.

        It is below 0 where ``name`` ends below ``reference``; for an even number of seeds, the median is the lower one
        of the middle two.
        """
        ours, other = (final_loss(self.measurements[which], split) for which in (name, reference))
        return float(log_ratio(ours, other, self.loss_scale).median())

    def paired_runs(self, name: str, reference: str) -> PairedRuns:
        """The runs of ``name`` and of ``reference``, for metrics."""
        cost = math.nan
        if self.gradient_seconds is not None and {name, reference} <= set(self.step_seconds):
            ours, other = (self.gradient_seconds + self.step_seconds[which] for which in (name, reference))
            cost = other / ours
        return PairedRuns(self.name, self.loss_scale, self.measurements[name], self.measurements[reference], cost)

    @classmethod
    def of(cls, problem: Problem, measurements: dict[str, Measurement]) -> ProblemResult:
        """The result for a problem, from its measurements."""
        params = problem.task.init(generator(0, "count"))
        return cls(
            problem.name,
            problem.horizon,
            float(problem.task.loss_scale),
            measurements,
            problem.family,
            problem.data,
            sum(params[name].numel() for name in problem.task.roles),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "horizon": self.horizon,
            "loss_scale": self.loss_scale,
            "family": self.family,
            "data": self.data,
            "parameters": self.parameters,
            "gradient_seconds": self.gradient_seconds,
            "step_seconds": self.step_seconds,
            "measurements": {name: run.to_json() for name, run in self.measurements.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> ProblemResult:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        entry = as_object(content, "a problem")
        name = text_of(entry, "name")
        runs = as_object(entry.get("measurements"), f"the measurements of {show(name)}")
        measurements = {as_name(key): Measurement.from_json(value) for key, value in runs.items()}
        for key, run in measurements.items():
            if run.horizon != entry.get("horizon"):
                raise ValueError(
                    f"{show(name)} has the horizon {show(entry.get('horizon'))}, {show(key)} {run.horizon}"
                )
        seconds = as_object(entry.get("step_seconds"), f"the step_seconds of {show(name)}")
        gradient = entry.get("gradient_seconds")
        return cls(
            name,
            whole_of(entry, "horizon"),
            as_positive(entry.get("loss_scale"), f"the loss_scale of {show(name)}"),
            measurements,
            text_of(entry, "family"),
            text_of(entry, "data"),
            whole_of(entry, "parameters"),
            None if gradient is None else as_positive(gradient, f"the gradient_seconds of {show(name)}"),
            {as_name(key): as_positive(value, f"the step_seconds of {show(key)}") for key, value in seconds.items()},
        )


@dataclass(frozen=True)
class Results:
    """The results of rules and baselines on a list of problems.

    Attributes:
        rules: records of the rules, by name.
        against: names of the baselines.
        problems: results by problem; each contains a measurement of every rule and baseline.
        suite: name of the suite, empty for other problems.
        seed: seed of initial models and mini-batches.
        environment: machine and versions, by name.
        command: the command line that makes these results.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, evaluate
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> baselines = Baselines(seeds=1, shipped=False)
        >>> results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     results.save(f"{folder}/results.json")
        ...     again = Results.load(f"{folder}/results.json")
        >>> again.against, again.seeds, list(again.rules)
        (('adam_default',), 1, ['mine'])
    """

    rules: dict[str, RuleRecord]
    against: tuple[str, ...]
    problems: tuple[ProblemResult, ...]
    suite: str = ""
    seed: int = 0
    environment: dict[str, str | int] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        if not self.problems or not self.rules:
            raise ValueError("results need at least one rule and one problem")
        names = {*self.rules, *self.against}
        if len(names) != len(self.rules) + len(self.against):
            raise ValueError(f"a rule is called like a baseline: {', '.join(map(show, sorted(names)))}")
        if len({problem.name for problem in self.problems}) != len(self.problems):
            raise ValueError("two problems have the same name")
        for problem in self.problems:
            if missing := sorted(names - set(problem.measurements)):
                raise ValueError(f"{show(problem.name)} has no measurement of {', '.join(map(show, missing))}")
        if len({len(run.final_train) for problem in self.problems for run in problem.measurements.values()}) != 1:
            raise ValueError("the measurements differ in their number of seeds")

    @property
    def seeds(self) -> int:
        """Number of models that each optimizer trained on each problem."""
        return len(next(iter(self.problems[0].measurements.values())).final_train)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "command": self.command,
            "suite": self.suite,
            "seed": self.seed,
            "rules": {name: vars(record) for name, record in self.rules.items()},
            "against": list(self.against),
            "environment": self.environment,
            "problems": [problem.to_json() for problem in self.problems],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, atomically."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a file of :meth:`save`. The file is treated as hostile: it has a bounded size and contains only data.

        Raises:
            ValueError: if it is anything else.
        """
        return read_json(Path(path), cls.from_json)

    @classmethod
    def from_json(cls, content: Any) -> Results:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        entry = as_object(content, "the file")
        if entry.get("format") != FORMAT or entry.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"the format is {show(entry.get('format'))}, version {show(entry.get('format_version'))}, instead of "
                f"{FORMAT!r}, version {FORMAT_VERSION}"
            )
        environment = as_object(entry.get("environment"), "the environment")
        return cls(
            {
                as_name(key): RuleRecord.from_json(value)
                for key, value in as_object(entry.get("rules"), "rules").items()
            },
            tuple(as_name(name) for name in as_list(entry.get("against"), "against")),
            tuple(ProblemResult.from_json(value) for value in as_list(entry.get("problems"), "problems")),
            text_of(entry, "suite"),
            whole_of(entry, "seed"),
            {as_name(key): value if type(value) is int else as_name(value) for key, value in environment.items()},
            text_of(entry, "command"),
        )
