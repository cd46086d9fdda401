"""Measures rules and tuned baselines on many problems: resumable, and on several processes."""

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
"""Number of a problem, and name of the optimizer that is measured on it."""

_Built = TypeVar("_Built")


@dataclass(frozen=True)
class Work:
    """The inputs of a process that measures optimizers on problems.

    Attributes:
        problems: problems in the order of the results.
        rules: rules by name.
        baselines: source of the tuned baselines; its number of seeds and its device hold for all measurements.
    """

    problems: tuple[Problem, ...]
    rules: dict[str, UpdateRule]
    baselines: Baselines

    def describe(self, job: Job) -> str:
        """A job in words."""
        return f"{job[1]} on {self.problems[job[0]].name}"

    def measure(self, number: int, name: str) -> Measurement:
        """The measurement of optimizer ``name`` on problem ``number``, with all seeds side by side."""
        return measurements_on(self.problems[number], [name], self.rules, self.baselines)[name]

    def measured(self, job: Job) -> tuple[Measurement, bool]:
        """The measurement, and whether the file of baselines has it, so that it need not be stored again."""
        measurement = self.measure(*job)
        of_baseline = job[1] not in self.rules
        return measurement, of_baseline and self.baselines.path is not None and not self.baselines.not_kept


def measurements_on(
    problem: Problem, names: Sequence[str], rules: Mapping[str, UpdateRule], baselines: Baselines, *, seed: int = SEED
) -> dict[str, Measurement]:
    """The measurements of some optimizers on a problem, by name; rules of one class and config run side by side.

    Args:
        problem: the problem.
        names: names of rules and of baselines.
        rules: rules by name; a name that is not among them is that of a baseline.
        baselines: source of the baselines; its number of seeds and its device hold for the rules, too.
        seed: seed of models and mini-batches of the rules.
    """
    by_config: dict[str, list[str]] = {}
    for name in names:
        if name in rules:
            by_config.setdefault(f"{type(rules[name]).__qualname__} {rules[name].config}", []).append(name)
    measurements: dict[str, Measurement] = {}
    for group in by_config.values():
        of_config = [rules[name] for name in group]
        runs = run_rules(of_config, problem, seeds=baselines.seeds, seed=seed, device=baselines.device)
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

    Each measurement is stored in ``folder`` as soon as it is computed, unless the file of ``baselines`` has it. If this
    call is stopped in any way, a later call with the same settings measures only what is missing, and gives the same
    results.

    Args:
        rules: rules by name.
        problems: the problems, whose names must differ; or the name of a suite, or ``FILE.py:NAME`` for one of yours.
        against: names of baselines, at least one; or one name.
        baselines: source of the baselines; its number of seeds and its device hold for all measurements. ``None`` for
            the baselines of the package, 3 seeds, on the CPU.
        folder: folder for the measurements; ``None`` for none.
        workers: processes that measure, with one thread each; with 1 it is this process, with its threads.
        records: records of the rules; ``None`` for records that are made from the rules in memory.
        suite: name of the problems, for the report; by default that of the suite.
        command: command line that makes these results, for the report.
        progress: called with the number of finished measurements, the number of all, and the measurement that was
            finished last or has begun.

    Returns:
        the results, for :func:`~lightning_lopt.evaluation.report.write_report`.

    Raises:
        ValueError: if there is nothing to measure, or a name is unknown or used twice.
        ImportError: if a baseline has to be measured, and its package is not installed; nothing was measured then.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, Problem
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> rules, baselines = {"slow": AdamRule(0.01), "fast": AdamRule(0.1)}, Baselines(seeds=1, shipped=False)
        >>> with tempfile.TemporaryDirectory() as folder:  # keeps the measurements, for a later call
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
    marks = [_marks(problem) for problem in problems]
    keys = _keys(work, marks, against)
    total = len(keys) + len(problems)

    def tell(done: int, last: str) -> None:
        if progress is not None:
            progress(done, total, last)

    measurements = _measured_before(work, store, keys)
    missing = [job for job in keys if job not in measurements]
    for _, name in missing:
        if name in against:
            sweep_of(name).require()
    if measurements:
        tell(len(measurements), "measured before")
    new = _measured(work, missing, workers, lambda what: tell(len(measurements), what))
    for job, (measurement, is_stored) in new:
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
        key = _hash([marks[number], {name: keys[number, name] for name in runs}, environment, "consecutive steps"])
        costs = store.read(key, _costs)
        if costs is None:  # this process measures alone, after the others have finished
            tell(len(keys) + number, f"cost of a step on {problem.name}")
            costs = step_costs(problem, rules, against, device=baselines.device)
            store.write(key, {"gradient": costs[0], "steps": costs[1]})
        results.append(replace(ProblemResult.of(problem, runs), gradient_seconds=costs[0], step_seconds=costs[1]))
        tell(len(keys) + number + 1, f"cost of a step on {problem.name}")
    records = {name: RuleRecord.of(rule) for name, rule in rules.items()} if records is None else records
    return Results(
        {name: records[name] for name in rules}, tuple(against), tuple(results), suite, SEED, environment, command
    )


def _keys(work: Work, marks: Sequence[list[Any]], against: Sequence[str]) -> dict[Job, str]:
    """Hashes of everything that each measurement depends on, in the order of the measurements.

    Raises:
        RuleFileError: if a rule's weights are not finite.
    """
    seeds, keys = work.baselines.seeds, {}
    for number, problem in enumerate(work.problems):
        for name, rule in work.rules.items():
            rule_content = [type(rule).__qualname__, rule.config, weights_sha256(rule), seeds, SEED]
            keys[number, name] = _hash([marks[number], *rule_content])
        for name in against:
            baseline_content = [name, sweep_of(name).learning_rates, work.baselines.key(problem, name)]
            keys[number, name] = _hash([marks[number], *baseline_content])
    return keys


def _marks(problem: Problem) -> list[Any]:
    """JSON values that identify a problem; the last digits of losses depend on the machine."""
    return [problem.name, problem.horizon, [f"{mark:.3g}" for mark in fingerprint(problem.task)]]


def _hash(content: list[Any]) -> str:
    text = json.dumps([VERSION, __version__, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _measured_before(work: Work, store: MeasurementStore, keys: Mapping[Job, str]) -> dict[Job, Measurement]:
    """Measurements that an earlier call has stored, and stored measurements of baselines."""
    measurements: dict[Job, Measurement] = {}
    for (number, name), key in keys.items():
        stored = store.read(key, Measurement.from_json)
        if stored is not None:
            measurements[number, name] = replace(stored, optimizer=name)  # the rule may have had another name then
        elif name not in work.rules:
            record = work.baselines.find(work.problems[number], name)
            if record is not None:
                measurements[number, name] = record.measurement
    return measurements


def check_names(rules: Mapping[str, UpdateRule], problems: Sequence[Problem], against: Sequence[str]) -> None:
    """Check that there is something to measure, and that each name has one meaning.

    Raises:
        ValueError: if a list is empty, or a name is unknown or used twice.
    """
    if not rules or not problems or not against:
        raise ValueError(
            f"got {len(rules)} rules, {len(problems)} problems and {len(against)} baselines; give at least one of each."
        )
    known = BASELINES | FINE_TUNING_BASELINES
    for name in against:
        if name not in known:
            raise ValueError(f"there is no baseline {name!r}; use some of {', '.join(map(repr, known))}.")
    for names, what in (([*rules, *against], "optimizers"), ([problem.name for problem in problems], "problems")):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two {what} are called {twice!r}; give them names that differ.")


def _measured(
    work: Work, jobs: Sequence[Job], workers: int, begins: Callable[[str], None]
) -> Iterator[tuple[Job, tuple[Measurement, bool]]]:
    """Results of :meth:`Work.measured` as they are computed; ``begins`` is called with a text before they are."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            begins(work.describe(job))
            yield job, work.measured(job)
        return
    begins(f"{len(jobs)} measurements in {workers} processes")
    # Long runs come first, so that the processes finish at about the same time.
    ordered = sorted(jobs, key=lambda job: (-work.problems[job[0]].horizon, job))
    yield from call_in_processes(work.measured, ordered, workers)


@dataclass(frozen=True)
class MeasurementStore:
    """Measurements and costs in a folder, one file each, named by a hash of everything that its content depends on.

    A damaged file counts as missing. Files are written atomically.

    Attributes:
        folder: the folder; ``None`` stores nothing.
    """

    folder: Path | None

    def read(self, key: str, build: Callable[[Any], _Built]) -> _Built | None:
        """The result of ``build`` for the stored JSON values with this key; ``None`` if there are none."""
        try:
            return None if self.folder is None else read_json(self.folder / f"{key}.json", build)
        except ValueError:
            return None

    def write(self, key: str, content: Mapping[str, Any]) -> None:
        """Store JSON values."""
        if self.folder is not None:
            write_json(self.folder / f"{key}.json", content)


def _costs(content: Any) -> tuple[float, dict[str, float]]:
    """Seconds of the gradient, and seconds of the steps by optimizer."""
    entry = as_object(content, "the file")
    steps = as_object(entry.get("steps"), "steps")
    return as_positive(entry.get("gradient"), "gradient"), {key: as_positive(steps[key], key) for key in steps}
