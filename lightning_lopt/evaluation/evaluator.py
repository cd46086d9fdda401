"""Measurement of rules and tuned baselines on many problems; it is resumable, and may use several processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.__about__ import __version__
from lightning_lopt.checks import check_sizes
from lightning_lopt.evaluation.baselines import VERSION, Baselines, fingerprint
from lightning_lopt.evaluation.measurement import Measurement, Problem, run_rules
from lightning_lopt.evaluation.processes import call_in_processes
from lightning_lopt.evaluation.results import ProblemResult, Results, RuleRecord
from lightning_lopt.evaluation.step_cost import environment_of, step_costs
from lightning_lopt.evaluation.suites import named_problems
from lightning_lopt.evaluation.sweeps import BASELINES, FINE_TUNING_BASELINES, SEED, packages_of, sweep_of
from lightning_lopt.io import weights_sha256
from lightning_lopt.io.checked_json import as_object, as_positive, read_json, write_json
from lightning_lopt.rules.base import UpdateRule

Job = tuple[int, str]
"""Number of a problem, and name of the optimizer to measure on this problem."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Work:
    """The inputs of a process that measures optimizers on problems.

    Attributes:
        problems: problems in the order of the results.
        rules: rules by name.
        baselines: source of the tuned baselines; all measurements have its number of seeds and its device.
    """

    problems: tuple[Problem, ...]
    rules: dict[str, UpdateRule]
    baselines: Baselines

    def describe(self, job: Job) -> str:
        """A job in words."""
        return f"{job[1]} on {self.problems[job[0]].name}"

    def measure(self, number: int, name: str) -> Measurement:
        """The measurement of optimizer ``name`` on problem ``number``; all seeds run side by side."""
        return measurements_on(self.problems[number], [name], self.rules, self.baselines)[name]

    def measure_job(self, job: Job) -> tuple[Measurement, bool]:
        """The measurement, and whether the file of baselines contains it; then it need not be stored again."""
        measurement = self.measure(*job)
        is_baseline = job[1] not in self.rules
        return measurement, is_baseline and self.baselines.path is not None and not self.baselines.not_kept


def measurements_on(
    problem: Problem, names: Sequence[str], rules: Mapping[str, UpdateRule], baselines: Baselines, *, seed: int = SEED
) -> dict[str, Measurement]:
    """The measurements of some optimizers on a problem, by name; rules of one class and config run side by side.

    Args:
        problem: the problem.
        names: names of rules and of baselines.
        rules: rules by name; every other name is the name of a baseline.
        baselines: source of the baselines; the rules have the same number of seeds and the same device.
        seed: seed of models and mini-batches of the rules.
    """
    names_by_config: dict[str, list[str]] = {}
    for name in names:
        if name in rules:
            names_by_config.setdefault(f"{type(rules[name]).__qualname__} {rules[name].config}", []).append(name)
    measurements: dict[str, Measurement] = {}
    for group in names_by_config.values():
        group_rules = [rules[name] for name in group]
        runs = run_rules(group_rules, problem, seeds=baselines.seeds, seed=seed, device=baselines.device)
        measurements |= {name: replace(run, optimizer=name) for name, run in zip(group, runs, strict=True)}
    return {name: measurements[name] if name in rules else baselines(problem, name) for name in names}


def evaluate(
    rules: Mapping[str, UpdateRule],
    problems: str | Sequence[Problem],
    against: str | Sequence[str] = ("adamw",),
    *,
    baselines: Baselines | None = None,
    folder: str | os.PathLike[str] | None = None,
    workers: int = 1,
    records: Mapping[str, RuleRecord] | None = None,
    suite: str = "",
    command: str = "",
    progress: Callable[[int, int, str], None] | None = None,
) -> Results:
    """Measure every rule, unchanged, and every baseline on every problem, from the same models and mini-batches.

    Each measurement is stored in ``folder`` as soon as it is computed, unless the file of ``baselines`` contains it. If
    this call is stopped for any reason, a later call with the same settings makes only the missing measurements, and
    gives the same results.

    Args:
        rules: rules by name.
        problems: a list of problems with different names, the name of a suite, or ``FILE.py:NAME`` of a user's suite.
        against: names of baselines, at least one; or one name.
        baselines: source of the baselines; all measurements have its number of seeds and its device. ``None`` for the
            baselines of the package, 3 seeds, on the CPU.
        folder: folder for the measurements; ``None`` to store none.
        workers: number of processes, with one thread each; 1 means this process, with its threads.
        records: records of the rules; ``None`` for records that are made from the rules in memory.
        suite: name of the problems, for the report; the default is the name of the suite.
        command: command line that makes these results, for the report.
        progress: function that receives the number of finished measurements, the number of all measurements, and the
            measurement that has begun or was finished last.

    Returns:
        the results, for :func:`~lightning_lopt.evaluation.report.write_report`.

    Raises:
        ValueError: if there is nothing to measure, or a name is unknown or used twice.
        ImportError: if the package of a baseline to measure is not installed; nothing was measured then.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, Problem
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> rules, baselines = {"slow": AdamRule(0.01), "fast": AdamRule(0.1)}, Baselines(seeds=1, shipped=False)
        >>> with tempfile.TemporaryDirectory() as folder:  # a later call finds the measurements there
        ...     results = evaluate(rules, [bowl], ["adam_default"], baselines=baselines, folder=folder)
        >>> results.problems[0].log_ratio("fast", "slow") < 0
        True
    """
    baselines = Baselines() if baselines is None else baselines
    against = (against,) if isinstance(against, str) else against
    if isinstance(problems, str):
        suite = suite or problems
        problems = named_problems(problems)
    check_names(rules, problems, against)
    check_sizes(workers=workers)
    work = Work(tuple(problems), dict(rules), baselines)
    store = MeasurementStore(None if folder is None else Path(folder))
    identities = [_identity(problem) for problem in problems]
    keys = _keys(work, identities, against)
    total = len(keys) + len(problems)

    def tell(finished: int, activity: str) -> None:
        if progress is not None:
            progress(finished, total, activity)

    measurements = _stored_measurements(work, store, keys)
    missing = [job for job in keys if job not in measurements]
    for _, name in missing:
        if name in against:
            sweep_of(name).require()
    if measurements:
        tell(len(measurements), "measured before")
    new_results = _new_measurements(work, missing, workers, lambda activity: tell(len(measurements), activity))
    for job, (measurement, is_stored) in new_results:
        if not is_stored:
            store.write(keys[job], measurement.to_json())
        measurements[job] = measurement
        tell(len(measurements), work.describe(job))
    if torch.get_num_threads() > 1 and workers > 1:
        rank_zero_warn("workers measure with one thread each; the other threads of this process are not used.")
    threads = torch.get_num_threads() if workers == 1 else 1
    environment = environment_of(torch.device(baselines.device), threads) | {"workers": workers} | packages_of(against)
    results = []
    for number, problem in enumerate(problems):
        runs = {name: measurements[number, name] for name in (*rules, *against)}
        key = _hash([identities[number], {name: keys[number, name] for name in runs}, environment, "consecutive steps"])
        costs = store.read(key, _costs)
        if costs is None:  # only this process measures costs, after the other processes have finished
            tell(len(keys) + number, f"cost of a step on {problem.name}")
            costs = step_costs(problem, rules, against, device=baselines.device)
            store.write(key, {"gradient": costs[0], "steps": costs[1]})
        results.append(replace(ProblemResult.of(problem, runs), gradient_seconds=costs[0], step_seconds=costs[1]))
        tell(len(keys) + number + 1, f"cost of a step on {problem.name}")
    records = {name: RuleRecord.of(rule) for name, rule in rules.items()} if records is None else records
    return Results(
        {name: records[name] for name in rules}, tuple(against), tuple(results), suite, SEED, environment, command
    )


def _keys(work: Work, identities: Sequence[list[Any]], against: Sequence[str]) -> dict[Job, str]:
    """For each measurement, in order, a hash of everything that the measurement depends on.

    Raises:
        RuleFileError: if a rule's weights are not finite.
    """
    seeds, keys = work.baselines.seeds, {}
    for number, problem in enumerate(work.problems):
        for name, rule in work.rules.items():
            rule_content = [type(rule).__qualname__, rule.config, weights_sha256(rule), seeds, SEED]
            keys[number, name] = _hash([identities[number], *rule_content])
        for name in against:
            baseline_content = [name, sweep_of(name).learning_rates, work.baselines.key(problem, name)]
            keys[number, name] = _hash([identities[number], *baseline_content])
    return keys


def _identity(problem: Problem) -> list[Any]:
    """JSON values that identify a problem; losses are rounded, because their last digits depend on the machine."""
    return [problem.name, problem.horizon, [f"{value:.3g}" for value in fingerprint(problem.task)]]


def _hash(content: list[Any]) -> str:
    text = json.dumps([VERSION, __version__, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _stored_measurements(work: Work, store: MeasurementStore, keys: Mapping[Job, str]) -> dict[Job, Measurement]:
    """Measurements stored by an earlier call, and stored measurements of baselines."""
    measurements: dict[Job, Measurement] = {}
    for (number, name), key in keys.items():
        stored = store.read(key, Measurement.from_json)
        if stored is not None:
            measurements[number, name] = replace(stored, optimizer=name)  # the stored name may be another one
        elif name not in work.rules:
            record = work.baselines.find(work.problems[number], name)
            if record is not None:
                measurements[number, name] = record.measurement
    return measurements


def check_names(rules: Mapping[str, UpdateRule], problems: Sequence[Problem], against: Sequence[str]) -> None:
    """Check that no list is empty, and that each name has one meaning.

    Raises:
        ValueError: if a list is empty, or a name is unknown or used twice.
    """
    if not rules or not problems or not against:
        raise ValueError(
            f"got {len(rules)} rules, {len(problems)} problems and {len(against)} baselines; give at least one of each."
        )
    sweeps = BASELINES | FINE_TUNING_BASELINES
    for name in against:
        if name not in sweeps:
            raise ValueError(f"there is no baseline {name!r}; use some of {', '.join(map(repr, sweeps))}.")
    for names, kind in (([*rules, *against], "optimizers"), ([problem.name for problem in problems], "problems")):
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"two {kind} are called {duplicate!r}; give them different names.")


def _new_measurements(
    work: Work, jobs: Sequence[Job], workers: int, tell: Callable[[str], None]
) -> Iterator[tuple[Job, tuple[Measurement, bool]]]:
    """Results of :meth:`Work.measure_job` as they are computed; ``tell`` receives a text before each computation."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            tell(work.describe(job))
            yield job, work.measure_job(job)
        return
    tell(f"{len(jobs)} measurements in {workers} processes")
    # Long runs come first, so that the processes finish at about the same time.
    ordered = sorted(jobs, key=lambda job: (-work.problems[job[0]].horizon, job))
    yield from call_in_processes(work.measure_job, ordered, workers)


@dataclass(frozen=True)
class MeasurementStore:
    """Measurements and costs in a folder. Each has a file, whose name is a hash of everything its content depends on.

    A damaged file counts as missing. Files are written atomically.

    Attributes:
        folder: the folder; ``None`` stores nothing.
    """

    folder: Path | None

    def read(self, key: str, build: Callable[[Any], _Result]) -> _Result | None:
        """The result of ``build`` for the stored JSON values with this key; ``None`` if no values are stored."""
        try:
            return None if self.folder is None else read_json(self.folder / f"{key}.json", build)
        except ValueError:
            return None

    def write(self, key: str, content: Mapping[str, Any]) -> None:
        """Store JSON values under this key."""
        if self.folder is not None:
            write_json(self.folder / f"{key}.json", content)


def _costs(content: Any) -> tuple[float, dict[str, float]]:
    """Seconds of the gradient, and seconds of the steps by optimizer."""
    entry = as_object(content, "the file")
    steps = as_object(entry.get("steps"), "steps")
    return as_positive(entry.get("gradient"), "gradient"), {key: as_positive(steps[key], key) for key in steps}
