"""Measurements on disk, one file each, so that a long evaluation can be resumed.

Baselines in a file of baselines (:class:`~lightning_lopt.evaluation.baselines.Baselines`) are not stored here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lightning_lopt.__about__ import __version__
from lightning_lopt.evaluation.baselines import VERSION, Baselines, fingerprint, sweep_of
from lightning_lopt.evaluation.json_files import as_object, as_positive, read_json, write_json
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.io import weights_sha256
from lightning_lopt.rules.base import UpdateRule

_Built = TypeVar("_Built")


class MeasurementStore:
    """Measurements and costs in a folder, one file each, named by a hash of everything that its content depends on.

    A damaged file counts as missing. Files are written atomically.

    Args:
        folder: the folder; ``None`` stores nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def measurement(self, key: str) -> Measurement | None:
        """The stored measurement with this key; ``None`` if there is none."""
        return self._read(key, Measurement.from_json)

    def keep_measurement(self, key: str, measurement: Measurement) -> None:
        """Store a measurement."""
        self._write(key, measurement.to_json())

    def costs(self, key: str) -> tuple[float, dict[str, float]] | None:
        """The stored seconds of the gradient and of the steps with this key; ``None`` if there are none."""
        return self._read(key, _costs)

    def keep_costs(self, key: str, costs: tuple[float, dict[str, float]]) -> None:
        """Store seconds of the gradient and of the steps."""
        self._write(key, {"gradient": costs[0], "steps": costs[1]})

    def _read(self, key: str, build: Callable[[Any], _Built]) -> _Built | None:
        if self.folder is None:
            return None
        try:
            return read_json(self.folder / f"{key}.json", build)
        except ValueError:
            return None

    def _write(self, key: str, content: dict[str, Any]) -> None:
        if self.folder is not None:
            write_json(self.folder / f"{key}.json", content)


def problem_marks(problem: Problem) -> list[Any]:
    """JSON values that identify a problem; the last digits of losses depend on the machine."""
    return [problem.name, problem.horizon, [f"{mark:.3g}" for mark in fingerprint(problem.task)]]


def rule_key(marks: list[Any], rule: UpdateRule, seeds: int, seed: int) -> str:
    """A hash of everything that the measurement of ``rule`` depends on.

    Raises:
        RuleFileError: if the rule's weights are not finite.
    """
    return _hash([marks, type(rule).__qualname__, rule.config, weights_sha256(rule), seeds, seed])


def baseline_key(marks: list[Any], problem: Problem, name: str, baselines: Baselines) -> str:
    """A hash of everything that the measurement of baseline ``name`` depends on."""
    return _hash([marks, name, sweep_of(name).learning_rates, baselines.key(problem, name)])


def cost_key(marks: list[Any], keys: dict[str, str], environment: dict[str, str | int]) -> str:
    """A hash of everything that the seconds depend on: keys of the optimizers, machine, and method of measuring."""
    return _hash([marks, keys, environment, "consecutive steps"])


def _hash(content: list[Any]) -> str:
    text = json.dumps([VERSION, __version__, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _costs(content: Any) -> tuple[float, dict[str, float]]:
    entry = as_object(content, "the file")
    steps = as_object(entry.get("steps"), "steps")
    return as_positive(entry.get("gradient"), "gradient"), {key: as_positive(steps[key], key) for key in steps}
