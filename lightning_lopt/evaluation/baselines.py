"""Tuned AdamW on a problem, computed once and kept in a small JSON file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_lopt.evaluation.runs import LEARNING_RATES, tuned_adamw
from lightning_lopt.evaluation.suites import Problem
from lightning_lopt.seeding import generator

VERSION = 1  # of what a baseline is: change it when its numbers change


@dataclass(frozen=True)
class Baseline:
    """What tuned AdamW reached on one problem.

    Attributes:
        learning_rate: the best of :data:`~lightning_lopt.evaluation.runs.LEARNING_RATES`, with a cosine schedule.
        final_train: loss on the training split after the last step, one for each seed.
        final_valid: loss on the validation split, likewise.
    """

    learning_rate: float
    final_train: list[float]
    final_valid: list[float]


class TunedBaselines:
    """Baselines by content: a problem whose task, initial models, data or horizon differ is computed anew.

    Args:
        path: JSON file to read and to add to; ``None`` to keep them in memory only.
        seeds: models trained at each learning rate, >= 1.

    Raises:
        ValueError: if the file is not one of baselines.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, seeds: int = 3) -> None:
        self.path = None if path is None else Path(path)
        self.seeds = seeds
        self.known: dict[str, Baseline] = {}
        if self.path is not None and self.path.is_file():
            try:
                entries = json.loads(self.path.read_text())
                self.known = {key: Baseline(**entry) for key, entry in entries.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path} is not a file of baselines ({error}); delete it, and they are computed anew."
                ) from None

    def __call__(self, problem: Problem) -> Baseline:
        """The baseline of ``problem``, computed if it is not known (some 10 to 60 seconds)."""
        key = self.key(problem)
        if key not in self.known:
            curves, rate = tuned_adamw(problem.task, horizon=problem.horizon, seeds=self.seeds)
            self.known[key] = Baseline(rate, curves.final_train.tolist(), curves.final_valid.tolist())
            self._write()
        return self.known[key]

    def key(self, problem: Problem) -> str:
        """Name of the problem, and a hash of what its baseline depends on."""
        task = problem.task
        params = task.init(generator(0, "key"))
        losses = [float(task.loss(params, task.full_batch(split))) for split in ("train", "valid")]
        content = {
            "version": VERSION,
            "shapes": {name: list(value.shape) for name, value in params.items()},
            "batch": {name: list(value.shape) for name, value in task.batch(generator(0, "key")).items()},
            "losses": [f"{loss:.3g}" for loss in losses],  # the last digits depend on the machine
            "horizon": problem.horizon,
            "seeds": self.seeds,
            "learning_rates": LEARNING_RATES,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{problem.name}@{digest[:16]}"

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps({key: asdict(value) for key, value in sorted(self.known.items())}, indent=1) + "\n")
        os.replace(draft, self.path)
