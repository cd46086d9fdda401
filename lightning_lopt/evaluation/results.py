"""Everything a report shows can be computed from these results; they are written as ``results.json`` and read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_lopt.evaluation.json_files import as_list, as_name, as_object, read_json, text_of, whole_of, write_json
from lightning_lopt.evaluation.problem_result import ProblemResult
from lightning_lopt.io import RuleFileError, weights_sha256
from lightning_lopt.io.files import show
from lightning_lopt.rules.base import UpdateRule

FORMAT = "lightning_lopt_results"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class RuleRecord:
    """Which rule was measured.

    Attributes:
        rule: its name in the registry (``"residual"``).
        config: arguments that build it.
        weights_sha256: of its weights.
        meta_parameters: how many numbers θ has.
        trained_on: what it was meta-trained on: lists of names ``families`` and ``data``, and ``horizons``, the
            shortest and the longest; ``chosen_on``, names of the problems on which it was chosen among others; empty
            where the rule does not say.
        source: name or folder it was loaded from, empty for a rule in memory.
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
            rule: any; where its weights could not be saved, their hash is left empty.
            trained_on: what it says of its meta-training; other entries than those that are wanted may be there.
            source: where it comes from.

        Raises:
            ValueError: if ``trained_on`` holds something else than lists of names and two horizons.
        """
        try:
            digest = weights_sha256(rule)
        except RuleFileError:
            digest = ""
        count = sum(parameter.numel() for parameter in rule.parameters())
        return cls(rule.rule_name, rule.config, digest, count, checked_training(dict(trained_on or {})), source)

    @classmethod
    def from_json(cls, content: Any) -> RuleRecord:
        """From the attributes as JSON.

        Raises:
            ValueError: if it is anything else.
        """
        entry = as_object(content, "a rule")
        return cls(
            text_of(entry, "rule"),
            as_object(entry.get("config"), "the config of a rule"),
            text_of(entry, "weights_sha256"),
            whole_of(entry, "meta_parameters"),
            checked_training(entry.get("trained_on")),
            text_of(entry, "source"),
        )


@dataclass(frozen=True)
class Results:
    """Rules, and what they are compared with, on a list of problems.

    Attributes:
        rules: those under test, by name.
        against: names of the baselines.
        problems: what was measured; each holds a measurement of every rule and baseline.
        suite: name of the suite, empty for problems of the caller's own.
        seed: of initial models and mini-batches.
        environment: machine and versions, by name.
        command: the command line that makes these results.
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
        wanted = {*self.rules, *self.against}
        if len(wanted) != len(self.rules) + len(self.against):
            raise ValueError(f"a rule is called like a baseline: {', '.join(map(show, sorted(wanted)))}")
        if len({problem.name for problem in self.problems}) != len(self.problems):
            raise ValueError("two problems have the same name")
        for problem in self.problems:
            if missing := sorted(wanted - set(problem.measurements)):
                raise ValueError(f"{show(problem.name)} has no measurement of {', '.join(map(show, missing))}")
        if len({len(run.final_train) for problem in self.problems for run in problem.measurements.values()}) != 1:
            raise ValueError("the measurements differ in their number of seeds")

    @property
    def seeds(self) -> int:
        """Models that each optimizer trained on each problem."""
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
        """Write a JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read what :meth:`save` wrote. The file is treated as hostile: bounded, and data alone.

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


def checked_training(content: Any) -> dict[str, Any]:
    """The entries of :attr:`RuleRecord.trained_on` in what a rule says of its meta-training, as far as they are there.

    Raises:
        ValueError: if one of them is there and not what it should be.
    """
    entry = {} if content is None else as_object(content, "trained_on")
    found: dict[str, Any] = {}
    for key in ("families", "data", "chosen_on"):
        if key in entry:
            found[key] = [as_name(name) for name in as_list(entry[key], key)]
    if "horizons" in entry:
        horizons = as_list(entry["horizons"], "horizons")
        if len(horizons) != 2 or not all(type(value) is int and value > 0 for value in horizons):
            raise ValueError(f"horizons must be the shortest and the longest number of steps, got {show(horizons)}")
        found["horizons"] = horizons
    return found
