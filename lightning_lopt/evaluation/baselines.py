"""Measurements of hand-designed optimizers, tuned or untuned, on problems; they are computed once and stored as JSON.

Processes that share a file take turns. Under a lock, each process reads the file and adds its new entries.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.checks import check_sizes
from lightning_lopt.errors import cause, show
from lightning_lopt.evaluation.measurement import Measurement, Problem, six_digits
from lightning_lopt.evaluation.sweeps import BASELINES, FINE_TUNING_BASELINES, SEED, Sweep, sweep_of
from lightning_lopt.io.files import MIB
from lightning_lopt.io.whole import draft_folder, write_whole
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Task

__all__ = ["BASELINES", "FINE_TUNING_BASELINES", "Baselines", "Sweep", "fingerprint", "shipped_entries", "sweep_of"]

VERSION = 2  # version of the computation: increase this number when the numbers of baselines change
SHIPPED = "tuned_baselines.json"
FORMAT = 1
LIMIT = 64 * MIB
"""Largest number of bytes that are read; an entry takes about 4 KiB."""
TOLERANCE = 2e-3
"""Largest relative difference of the fingerprints of one task between machines and versions."""
LOCK_SECONDS = 60.0
"""Longest wait for the lock of a file; a process holds the lock for a fraction of a second."""


@dataclass(frozen=True)
class BaselineRecord:
    """The measurement of one baseline on one problem, as an entry of the file.

    Attributes:
        key: hash of the exact settings that the measurement depends on.
        problem: name of the problem, for readers of the file.
        fingerprint: inexact numbers of the task, see :func:`fingerprint`.
        sweep: median final loss at each candidate, in the order of the sweep; infinite if the runs diverged.
        measurement: the run at the chosen candidate.
    """

    key: str
    problem: str
    fingerprint: list[float]
    sweep: list[float]
    measurement: Measurement

    def fits(self, numbers: Sequence[float]) -> bool:
        """Whether ``numbers`` equal the fingerprint, up to differences between machines."""
        pairs = zip(self.fingerprint, numbers, strict=False)
        return len(numbers) == len(self.fingerprint) and all(
            math.isclose(stored, number, rel_tol=TOLERANCE, abs_tol=1e-7) for stored, number in pairs
        )


class Baselines:
    """Measurements of baselines on problems; the task, its models and the horizon identify a measurement.

    A measurement is searched first in the user's file, then in the file of the package (3 seeds, the suites with their
    default data). A missing measurement is computed, which takes from seconds to minutes.

    Args:
        path: JSON file to read, and to which new measurements are added; ``None`` to store them in memory only.
        seeds: number of models trained at each learning rate, >= 1.
        shipped: whether to use the measurements of the package.
        device: device for new measurements.

    Attributes:
        not_kept: the reason why the last new entry could not be written to the file; empty after a successful write.

    Raises:
        ValueError: if the file is not a file of baselines.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> baselines = Baselines(seeds=1, shipped=False)  # path="baselines.json" would store them in that file
        >>> measurement = baselines(bowl, "adamw")
        >>> measurement.optimizer, measurement.learning_rate  # the best rate of the sweep
        ('adamw', 0.1)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        seeds: int = 3,
        *,
        shipped: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sizes(seeds=seeds)
        self.path = None if path is None else Path(path)
        self.seeds = seeds
        self.device = device
        self.entries: list[BaselineRecord] = (
            read_entries(self.path) if self.path is not None and self.path.exists() else []
        )
        self.shipped: list[BaselineRecord] = shipped_entries() if shipped else []
        self.not_kept = ""
        self._fingerprints: dict[int, tuple[Task, list[float]]] = {}

    def __call__(self, problem: Problem, name: str = "adamw") -> Measurement:
        """The measurement of baseline ``name`` on ``problem``; it is computed if it is not stored.

        Raises:
            ValueError: if there is no such baseline.
            ImportError: if the measurement must be computed, and the package of the baseline is not installed.
        """
        entry = self.find(problem, name)
        if entry is None:
            entry = self._compute(problem, name)
            self._store(entry)
        return entry.measurement

    def find(self, problem: Problem, name: str) -> BaselineRecord | None:
        """The stored entry of baseline ``name`` on ``problem``; ``None`` if no entry is stored.

        Raises:
            ValueError: if there is no such baseline.
        """
        key, numbers = self.key(problem, name), self._fingerprint(problem.task)
        matching = (entry for entry in (*self.entries, *self.shipped) if entry.key == key and entry.fits(numbers))
        return next(matching, None)

    def key(self, problem: Problem, name: str) -> str:
        """A hash of the exact settings that the numbers depend on; :func:`fingerprint` has the inexact settings."""
        task, sweep = problem.task, sweep_of(name)
        params = task.init(generator(SEED, "key"))
        batch = task.batch(generator(SEED, "key"))
        content = {
            "version": VERSION,
            "params": {key: [*value.shape] for key, value in params.items()},
            "roles": task.roles,
            "batch": {key: [str(value.dtype), *value.shape] for key, value in batch.items()},
            "transforms": getattr(task, "config", {}).get("transforms", []),
            "horizon": problem.horizon,
            "seeds": self.seeds,
            "rule": sweep.identity,
            "learning_rates": sweep.learning_rates,
        }
        if sweep.chosen_by != "train" or sweep.head_alone:
            content |= {"chosen_by": sweep.chosen_by, "head_alone": sweep.head_alone}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _fingerprint(self, task: Task) -> list[float]:
        """:func:`fingerprint`, computed once per task, because it is slow for a large model."""
        if id(task) not in self._fingerprints:
            self._fingerprints[id(task)] = (task, fingerprint(task))  # the reference to the task keeps its id unique
        return self._fingerprints[id(task)][1]

    def _compute(self, problem: Problem, name: str) -> BaselineRecord:
        sweep = sweep_of(name)
        runs = sweep.run(problem, seeds=self.seeds, device=self.device)
        finals = [run.final_train if sweep.chosen_by == "train" else run.final_valid for run in runs]
        medians = [float(torch.nan_to_num(final, nan=torch.inf).median()) for final in finals]
        best = medians.index(min(medians))
        best_run = replace(
            runs[best], optimizer=name, learning_rate=sweep.learning_rates[best] if sweep.tuned else None
        )
        return BaselineRecord(self.key(problem, name), problem.name, self._fingerprint(problem.task), medians, best_run)

    def _store(self, entry: BaselineRecord) -> None:
        """Store an entry in memory, and in the file if the file can be written."""
        self.entries.append(entry)
        if self.path is None:
            return
        try:
            self.entries = add_entries(self.path, self.entries)
            self.not_kept = ""
        except (OSError, ValueError) as error:
            if not self.not_kept:
                rank_zero_warn(f"baselines were computed but not stored ({cause(error)}).")
            self.not_kept = cause(error)


def shipped_entries() -> list[BaselineRecord]:
    """The baselines of the package.

    >>> shipped_entries()[0].problem
    'digits-mlp-tiny'
    """
    file = files("lightning_lopt.evaluation").joinpath(SHIPPED)
    return read_entries(Path(str(file))) if file.is_file() else []


def fingerprint(task: Task) -> list[float]:
    """Numbers that distinguish tasks of the same shapes.

    Between machines these numbers differ only in the last digits; between tasks they differ in the first digits. They
    are the loss of an uninformed model, the losses of one initial model on both splits, the validation loss at twice
    the initial weights, and the loss and the RMS of the gradient on one mini-batch.

    >>> from lightning_lopt.tasks import Quadratic
    >>> len(fingerprint(Quadratic(torch.tensor([1.0, 4.0]))))
    6
    """
    params = task.init(generator(SEED, "key"))
    doubled = {name: 2 * value if name in task.roles else value for name, value in params.items()}
    grads, loss, _ = task.gradient(params, task.batch(generator(SEED, "key")))
    squares = torch.cat([grad.flatten().square() for grad in grads.values()])
    losses: Sequence[float] = [float(task.loss(params, task.full_batch(split))) for split in ("train", "valid")]
    doubled_loss = float(task.loss(doubled, task.full_batch("valid")))
    numbers = (task.loss_scale, *losses, doubled_loss, float(loss), float(squares.mean().sqrt()))
    # JSON cannot represent a value that is not finite; such a value is not finite on any machine
    return [float(f"{value:.6g}") if math.isfinite(value) else -1.0 for value in numbers]


def read_entries(path: Path) -> list[BaselineRecord]:
    """The entries of a file.

    Raises:
        ValueError: if the file is not a file of baselines, is damaged, has another format, or cannot be read.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it has more than {LIMIT // MIB} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {show(content['format'])}, not {FORMAT}")
        return [_from_json(entry) for entry in content["entries"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"{cause(error)} is missing" if isinstance(error, KeyError) else cause(error)
        raise ValueError(
            f"{path} is not a file of baselines ({reason}); delete it, and the baselines are computed again."
        ) from None


def add_entries(path: Path, entries: Sequence[BaselineRecord]) -> list[BaselineRecord]:
    """Add the missing entries to the file; the folder of the file is made if necessary.

    Returns:
        all entries of the file after the call, including entries of other processes.

    Raises:
        OSError: if the file cannot be written, or another process has held its lock for a minute.
        ValueError: if the file exists and is not a file of baselines; the file is not changed.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(path.parent):  # raises at once if the folder cannot be written; the lock would wait a minute
        pass
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
        stored = read_entries(path) if path.exists() else []
        stored_keys = [(entry.key, entry.fingerprint) for entry in stored]
        stored += [entry for entry in entries if (entry.key, entry.fingerprint) not in stored_keys]
        write_entries(path, stored)
    return stored


def write_entries(path: Path, entries: Sequence[BaselineRecord]) -> None:
    """Replace the file by these entries, one per line; after a crash either the old or the new file exists."""
    lines = [json.dumps(_to_json(entry), separators=(",", ":")) for entry in entries]
    write_whole(path, f'{{"format":{FORMAT},"entries":[\n' + ",\n".join(lines) + "\n]}\n")


def _to_json(entry: BaselineRecord) -> dict[str, Any]:
    return {
        "key": entry.key,
        "problem": entry.problem,
        "fingerprint": entry.fingerprint,
        "sweep": [six_digits(value) for value in entry.sweep],
        "measurement": entry.measurement.to_json(),
    }


def _from_json(content: Any) -> BaselineRecord:
    return BaselineRecord(
        str(content["key"]),
        str(content["problem"]),
        [float(value) for value in content["fingerprint"]],
        [math.inf if value is None else float(value) for value in content["sweep"]],
        Measurement.from_json(content["measurement"]),
    )
