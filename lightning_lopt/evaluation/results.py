"""The results of an evaluation; ``results.json`` contains them, and a report is computed from them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_lopt.errors import show
from lightning_lopt.evaluation.measurement import Measurement, Problem
from lightning_lopt.evaluation.metrics import PairedRuns, final_loss, log_ratio
from lightning_lopt.io import RuleFileError, weights_sha256
from lightning_lopt.io.checked_json import (
    as_list,
    as_name,
    as_object,
    as_positive,
    read_json,
    text_of,
    whole_number_of,
    write_json,
)
from lightning_lopt.io.identity import checked_training
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator

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
        family: task family that could have drawn the problem; empty if no family fits.
        data: name of the problem's data; empty if it has no data.
        parameters: number of parameters of the model.
        gradient_seconds: seconds of forward and backward of one mini-batch; ``None`` if they were not measured.
        step_seconds: measured seconds of one step of an optimizer in its deployed form, by name.

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

        The result is below 0 if the final loss of ``name`` is lower. For an even number of seeds, the median is the
        lower of the two middle values.
        """
        losses, reference_losses = (final_loss(self.measurements[optimizer], split) for optimizer in (name, reference))
        return float(log_ratio(losses, reference_losses, self.loss_scale).median())

    def paired_runs(self, name: str, reference: str) -> PairedRuns:
        """The runs of ``name`` and of ``reference``, for metrics."""
        cost = math.nan
        if self.gradient_seconds is not None and {name, reference} <= set(self.step_seconds):
            seconds, reference_seconds = (self.gradient_seconds + self.step_seconds[key] for key in (name, reference))
            cost = reference_seconds / seconds
        return PairedRuns(self.name, self.loss_scale, self.measurements[name], self.measurements[reference], cost)

    @classmethod
    def of(cls, problem: Problem, measurements: dict[str, Measurement]) -> ProblemResult:
        """The result for a problem and its measurements."""
        task = problem.task
        params = task.init(generator(0, "count"))
        parameters, loss_scale = sum(params[name].numel() for name in task.roles), float(task.loss_scale)
        return cls(problem.name, problem.horizon, loss_scale, measurements, problem.family, problem.data, parameters)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = {key: value for key, value in vars(self).items() if key != "measurements"}
        return values | {"measurements": {name: run.to_json() for name, run in self.measurements.items()}}

    @classmethod
    def from_json(cls, content: Any) -> ProblemResult:
        """The inverse of :meth:`to_json`; other content raises a ``ValueError``."""
        entry = as_object(content, "a problem")
        name, horizon = text_of(entry, "name"), entry.get("horizon")
        runs = as_object(entry.get("measurements"), f"the measurements of {show(name)}")
        measurements = {as_name(key): Measurement.from_json(value) for key, value in runs.items()}
        for key, run in measurements.items():
            if run.horizon != horizon:
                raise ValueError(f"the horizons of {show(name)} and {show(key)} differ: {show(horizon)}, {run.horizon}")
        seconds = as_object(entry.get("step_seconds"), f"the step_seconds of {show(name)}")
        gradient = entry.get("gradient_seconds")
        return cls(
            name,
            whole_number_of(entry, "horizon"),
            as_positive(entry.get("loss_scale"), f"the loss_scale of {show(name)}"),
            measurements,
            text_of(entry, "family"),
            text_of(entry, "data"),
            whole_number_of(entry, "parameters"),
            None if gradient is None else as_positive(gradient, f"the gradient_seconds of {show(name)}"),
            {as_name(key): as_positive(value, f"the step_seconds of {show(key)}") for key, value in seconds.items()},
        )


@dataclass(frozen=True)
class RuleRecord:
    """The record of a measured rule.

    Attributes:
        rule: name of the rule in the registry (``"residual"``).
        config: arguments that build the rule.
        weights_sha256: SHA-256 of the rule's weights.
        meta_parameters: number of entries of θ.
        trained_on: record of meta-training: lists of names ``families`` and ``data``; ``horizons``, the shortest and
            the longest; ``chosen_on``, names of the problems by whose results this rule was chosen among several rules.
            A missing entry is unknown.
        source: name or folder from which the rule was loaded; empty for a rule in memory.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> record = RuleRecord.of(AdamRule(), {"families": ["image_mlp"], "horizons": [100, 1000]})
        >>> record.rule, record.meta_parameters, record.trained_on
        ('adam', 1, {'families': ['image_mlp'], 'horizons': [100, 1000]})
    """

    rule: str
    config: dict[str, Any]
    weights_sha256: str
    meta_parameters: int
    trained_on: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, rule: UpdateRule, trained_on: Mapping[str, Any] | None = None, source: str = "") -> RuleRecord:
        """The record of a rule in memory.

        Args:
            rule: the rule; if its weights cannot be saved, their hash is empty.
            trained_on: the rule's record of meta-training, which may have further entries.
            source: name or folder from which the rule was loaded.

        Raises:
            ValueError: if an entry of ``trained_on`` is not a list of names, or ``horizons`` are not two numbers.
        """
        try:
            digest = weights_sha256(rule)
        except RuleFileError:
            digest = ""
        count = sum(parameter.numel() for parameter in rule.parameters())
        return cls(rule.rule_name, rule.config, digest, count, checked_training(dict(trained_on or {})), source)

    @classmethod
    def from_json(cls, content: Any) -> RuleRecord:
        """The record from its attributes as JSON values; other content raises a ``ValueError``."""
        entry = as_object(content, "a rule")
        return cls(
            text_of(entry, "rule"),
            as_object(entry.get("config"), "the config of a rule"),
            text_of(entry, "weights_sha256"),
            whole_number_of(entry, "meta_parameters"),
            checked_training(entry.get("trained_on")),
            text_of(entry, "source"),
        )


@dataclass(frozen=True)
class Results:
    """The results of rules and baselines on a list of problems.

    Attributes:
        rules: records of the rules, by name.
        against: names of the baselines.
        problems: results by problem; each contains a measurement of every rule and baseline.
        suite: name of the suite; empty for problems without a suite.
        seed: seed of initial models and mini-batches.
        environment: machine and versions, by name.
        command: the command line that makes these results.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, evaluate
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=Baselines(seeds=1))
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
            raise ValueError(f"a rule has the name of a baseline: {', '.join(map(show, sorted(names)))}")
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
        """Write the results to a JSON file, atomically."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a file of :meth:`save`, as untrusted input of bounded size; other content raises a ``ValueError``."""
        return read_json(Path(path), cls.from_json)

    @classmethod
    def from_json(cls, content: Any) -> Results:
        """The inverse of :meth:`to_json`; other content raises a ``ValueError``."""
        entry = as_object(content, "the file")
        tag, version = entry.get("format"), entry.get("format_version")
        if (tag, version) != (FORMAT, FORMAT_VERSION):
            expected = f"{FORMAT!r}, version {FORMAT_VERSION}"
            raise ValueError(f"the format is {show(tag)}, version {show(version)}, instead of {expected}")
        environment = as_object(entry.get("environment"), "the environment")
        rules = as_object(entry.get("rules"), "rules")
        return cls(
            {as_name(key): RuleRecord.from_json(value) for key, value in rules.items()},
            tuple(as_name(name) for name in as_list(entry.get("against"), "against")),
            tuple(ProblemResult.from_json(value) for value in as_list(entry.get("problems"), "problems")),
            text_of(entry, "suite"),
            whole_number_of(entry, "seed"),
            {as_name(key): value if type(value) is int else as_name(value) for key, value in environment.items()},
            text_of(entry, "command"),
        )
