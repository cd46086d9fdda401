"""Rules beside tuned baselines on many problems: resumable, and on several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.measurement_store import (
    MeasurementStore,
    baseline_key,
    cost_key,
    problem_marks,
    rule_key,
)
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.results import ProblemResult, Results
from lightning_lopt.evaluation.rule_record import RuleRecord
from lightning_lopt.evaluation.runs import run_rules
from lightning_lopt.evaluation.step_cost import step_costs
from lightning_lopt.evaluation.sweeps import BASELINES, FINE_TUNING_BASELINES, SEED, sweep_of
from lightning_lopt.evaluation.timing import environment_of
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.user_files import import_again, imported_files


@dataclass(frozen=True)
class Work:
    """Everything that a process needs to measure an optimizer on a problem.

    Attributes:
        problems: in the order of the results.
        rules: by name.
        baselines: where tuned baselines come from, with the number of seeds of everything, and the device of all.
    """

    problems: tuple[Problem, ...]
    rules: dict[str, UpdateRule]
    baselines: Baselines

    def is_stored(self, name: str) -> bool:
        """Whether the file of baselines has what was measured last, so that it need not be stored once more."""
        return name not in self.rules and self.baselines.path is not None and not self.baselines.not_kept

    def measure(self, number: int, name: str) -> Measurement:
        """What the optimizer ``name`` does on problem ``number``, all its seeds side by side."""
        problem = self.problems[number]
        if name in self.rules:
            rule = self.rules[name].to(self.baselines.device)
            (run,) = run_rules([rule], problem, seeds=self.baselines.seeds, seed=SEED)
            return replace(run, optimizer=name)
        return self.baselines(problem, name)


def evaluate(
    rules: Mapping[str, UpdateRule],
    problems: Sequence[Problem],
    against: Sequence[str] = ("adamw",),
    *,
    baselines: Baselines | None = None,
    folder: str | os.PathLike[str] | None = None,
    workers: int = 1,
    records: Mapping[str, RuleRecord] | None = None,
    suite: str = "",
    command: str = "",
    progress: Callable[[int, int, str], None] | None = None,
) -> Results:
    """Measure every rule, as it is, and every baseline on every problem, from the same models and mini-batches.

    Each measurement is stored in ``folder`` as soon as it is there, unless the file of ``baselines`` has it. A later
    call with the same settings, after this one was stopped in whatever way, measures only what is missing, and gives
    the same results.

    Args:
        rules: what to measure, by name.
        problems: what to solve; names must differ.
        against: names of baselines, at least one.
        baselines: where they come from, with the number of seeds, and the device on which everything runs; ``None``
            for those inside the package, 3 seeds, on the CPU.
        folder: where measurements are kept; ``None`` for nowhere.
        workers: processes that measure, one thread each; with 1 it is this process, with its threads.
        records: what is known of the rules; ``None`` for what can be seen of rules in memory.
        suite: name of the problems, for the report.
        command: command line that makes these results, for the report.
        progress: called with how much is done, how much there is, and what was last.

    Returns:
        the results, for :func:`~lightning_lopt.evaluation.report.write_report`.

    Raises:
        ValueError: if there is nothing to measure, or a name is unknown or taken twice.
        ImportError: if a baseline has to be measured, and is of a package that is not installed; nothing was measured.

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
    _check(rules, problems, against, workers)
    work = Work(tuple(problems), dict(rules), baselines)
    store = MeasurementStore(None if folder is None else Path(folder))
    marks = [problem_marks(problem) for problem in problems]
    keys = _keys(work, marks, against)
    total = len(keys) + len(problems)

    def report(done: int, last: str) -> None:
        if progress is not None:
            progress(done, total, last)

    measurements = _measured_before(work, store, keys)
    missing = [job for job in keys if job not in measurements]
    for _, name in missing:
        if name in against:
            sweep_of(name).require()
    if measurements:
        report(len(measurements), "measured before")
    for job, measurement, is_stored in _measured(work, missing, workers):
        if not is_stored:
            store.keep_measurement(keys[job], measurement)
        measurements[job] = measurement
        report(len(measurements), f"{job[1]} on {problems[job[0]].name}")
    if torch.get_num_threads() > 1 and workers > 1:
        rank_zero_warn("workers measure with one thread each, whatever this process has.")
    threads = torch.get_num_threads() if workers == 1 else 1
    environment = environment_of(torch.device(baselines.device), threads) | {"workers": workers} | _packages(against)
    results = []
    for number, problem in enumerate(problems):
        runs = {name: measurements[number, name] for name in (*rules, *against)}
        key = cost_key(marks[number], {name: keys[number, name] for name in runs}, environment)
        costs = store.costs(key)
        if costs is None:  # by this process alone, once the others are done
            costs = step_costs(problem, rules, against, device=baselines.device)
            store.keep_costs(key, costs)
        results.append(replace(ProblemResult.of(problem, runs), gradient_seconds=costs[0], step_seconds=costs[1]))
        report(len(keys) + number + 1, f"cost of a step on {problem.name}")
    records = {name: RuleRecord.of(rule) for name, rule in rules.items()} if records is None else records
    return Results(
        {name: records[name] for name in rules}, tuple(against), tuple(results), suite, SEED, environment, command
    )


Job = tuple[int, str]
"""Number of a problem, and name of the optimizer that is measured on it."""


def _keys(work: Work, marks: Sequence[list[Any]], against: Sequence[str]) -> dict[Job, str]:
    """Hashes of what each measurement depends on, in the order in which they are made."""
    seeds = work.baselines.seeds
    return {
        (number, name): rule_key(marks[number], work.rules[name], seeds, SEED)
        if name in work.rules
        else baseline_key(marks[number], problem, name, work.baselines)
        for number, problem in enumerate(work.problems)
        for name in (*work.rules, *against)
    }


def _measured_before(work: Work, store: MeasurementStore, keys: Mapping[Job, str]) -> dict[Job, Measurement]:
    """What an earlier call has stored, and what is known of baselines."""
    known: dict[Job, Measurement] = {}
    for (number, name), key in keys.items():
        stored = store.measurement(key)
        if stored is not None:
            known[number, name] = replace(stored, optimizer=name)  # a rule may have been called otherwise then
        elif name not in work.rules:
            record = work.baselines.find(work.problems[number], name)
            if record is not None:
                known[number, name] = record.measurement
    return known


def _check(rules: Mapping[str, UpdateRule], problems: Sequence[Problem], against: Sequence[str], workers: int) -> None:
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
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")


def _packages(against: Sequence[str]) -> dict[str, str]:
    """Other packages whose optimizers are among the baselines, and their versions."""
    packaged = [one for one in (sweep_of(name).packaged for name in against) if one is not None]
    return {
        one.package: one.installed_version or f"{one.version} (not installed: known results, no costs)"
        for one in packaged
    }


def _measured(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Measurement, bool]]:
    """Measurements as they come, each with whether the file of baselines has it."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            measurement = work.measure(*job)
            yield job, measurement, work.is_stored(job[1])
        return
    # Long runs first, so that no process is left alone with one at the end.
    ordered = sorted(jobs, key=lambda job: (-work.problems[job[0]].horizon, job))
    context = multiprocessing.get_context("spawn")  # after a fork, torch's threads hang
    initargs = (imported_files(), pickle.dumps(work))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=initargs) as pool:
        waiting: dict[Future[tuple[Measurement, bool]], Job] = {pool.submit(_one, job): job for job in ordered}
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), *future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: Work | None = None


def _begin(files: Mapping[str, Path], work: bytes) -> None:
    """Set up a process that measures; the tasks of problems may be of classes in the user's files."""
    global _work
    torch.set_num_threads(1)
    import_again(files)
    _work = pickle.loads(work)


def _one(job: Job) -> tuple[Measurement, bool]:
    assert _work is not None
    measurement = _work.measure(*job)
    return measurement, _work.is_stored(job[1])
