"""Hand-designed optimizers on a problem, tuned or untuned: computed once, and kept in small JSON files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.evaluation.baseline_cache import Entry, add_entries, read_entries
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.packaged import PackagedOptimizer, packaged_models
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.runs import RuleModels, SideBySide, measured_in_windows, run_rules
from lightning_lopt.io.files import cause
from lightning_lopt.rules import AdamRule, MuonRule, ScheduleFreeAdamRule, SGDRule, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Task

VERSION = 2  # of what a baseline is: change it when its numbers change
SHIPPED = "tuned_baselines.json"
SEED = 0  # of models and mini-batches, the same as for the rules that are compared
SIDE_BY_SIDE = 50_000_000
"""Entries of parameters that are trained at once at most; beyond, learning rates take turns."""
HALF_DECADES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


@dataclass(frozen=True)
class Sweep:
    """An optimizer and the learning rates among which tuning chooses.

    Attributes:
        make: the optimizer at a learning rate: a rule, or a class of another package.
        learning_rates: candidates; a single one means that nothing is tuned.
        description: one line for tables and help.
    """

    make: Callable[[float], UpdateRule | PackagedOptimizer]
    learning_rates: tuple[float, ...]
    description: str

    @property
    def tuned(self) -> bool:
        return len(self.learning_rates) > 1

    def require(self) -> None:
        """Nothing, where the optimizer can be run here.

        Raises:
            ImportError: if it is of a package that is not installed.
        """
        if self.packaged is not None:
            self.packaged.require()

    @property
    def available(self) -> bool:
        """Whether the optimizer can be run here."""
        return self.packaged is None or self.packaged.installed_version is not None

    @property
    def packaged(self) -> PackagedOptimizer | None:
        """The class of another package at the first learning rate; ``None`` for a rule."""
        made = self.make(self.learning_rates[0])
        return made if isinstance(made, PackagedOptimizer) else None

    @property
    def identity(self) -> list[object]:
        """Which optimizer it is, with its version and all settings but the learning rate, as JSON values."""
        made = self.make(1.0)
        name = made.full_name if isinstance(made, PackagedOptimizer) else made.rule_name
        return [name, {key: value for key, value in made.config.items() if key != "lr"}]

    def start(self, task: Task, horizon: int, *, seeds: int, device: torch.device | str) -> SideBySide:
        """Models before their first step, ``seeds`` for each learning rate; see :meth:`run`."""
        rules, packaged = self._made(self.learning_rates, device)
        if rules:
            return RuleModels(rules, task, horizon, seeds, SEED)
        return packaged_models(packaged, task, horizon, seeds=seeds, seed=SEED, device=device)

    def run(self, problem: Problem, *, seeds: int, device: torch.device | str) -> list[Measurement]:
        """A measurement at each learning rate.

        Raises:
            ImportError: if the optimizer is of a package that is not installed.
        """
        entries = sum(value.numel() for value in problem.task.init(generator(SEED, "key")).values())
        together = max(1, SIDE_BY_SIDE // (entries * seeds))
        measured: list[Measurement] = []
        for first in range(0, len(self.learning_rates), together):
            rules, packaged = self._made(self.learning_rates[first : first + together], device)
            if rules:
                measured += run_rules(rules, problem, seeds=seeds, seed=SEED)
            else:
                task, horizon = problem.task, problem.horizon
                models = packaged_models(packaged, task, horizon, seeds=seeds, seed=SEED, device=device)
                measured += measured_in_windows(models, task, horizon, copies=len(packaged))
        return measured

    def _made(
        self, rates: Sequence[float], device: torch.device | str
    ) -> tuple[list[UpdateRule], list[PackagedOptimizer]]:
        """The optimizers at some learning rates: rules, or classes of another package."""
        made = [self.make(rate) for rate in rates]
        return (
            [one.to(device) for one in made if isinstance(one, UpdateRule)],
            [one for one in made if isinstance(one, PackagedOptimizer)],
        )


def _eight_from(lowest: float) -> tuple[float, ...]:
    first = HALF_DECADES.index(lowest)
    return HALF_DECADES[first : first + 8]


def _soap(lr: float) -> PackagedOptimizer:
    """SOAP with the settings of its authors, which are those of the class."""
    options = {"betas": [0.95, 0.95], "weight_decay": 0.01, "precondition_frequency": 10}
    return PackagedOptimizer("pytorch_optimizer", "4.1.0", "SOAP", lr, options, schedule="cosine", period=10)


BASELINES: dict[str, Sweep] = {
    "adamw": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01, schedule="cosine"),
        _eight_from(3e-5),
        "AdamW, weight decay 0.01, cosine schedule, best of 8 learning rates",
    ),
    "sgd": Sweep(
        lambda lr: SGDRule(lr, momentum=0.9, nesterov=True, schedule="cosine"),
        _eight_from(1e-3),
        "SGD, Nesterov momentum 0.9, cosine schedule, best of 8 learning rates",
    ),
    "muon": Sweep(
        lambda lr: MuonRule(lr, weight_decay=0.1, schedule="cosine"),
        _eight_from(1e-4),
        "Muon for hidden matrices, AdamW for the rest, weight decay 0.1, cosine schedule, best of 8 learning rates",
    ),
    "schedule_free": Sweep(
        lambda lr: ScheduleFreeAdamRule(lr, weight_decay=0.01),
        _eight_from(1e-4),
        "schedule-free AdamW, weight decay 0.01, 5 % warm-up, best of 8 learning rates",
    ),
    "soap": Sweep(
        _soap,
        HALF_DECADES[4:9],
        "SOAP of pytorch_optimizer, weight decay 0.01, cosine schedule, best of 5 learning rates",
    ),
    "adam_default": Sweep(AdamRule, (1e-3,), "Adam as PyTorch has it: learning rate 1e-3, constant"),
    "adamw_1e-3": Sweep(
        lambda lr: AdamRule(lr, weight_decay=0.01, schedule="cosine"),
        (1e-3,),
        "AdamW, weight decay 0.01, cosine schedule, untuned: learning rate 1e-3",
    ),
    "soap_3e-3": Sweep(
        _soap, (3e-3,), "SOAP of pytorch_optimizer, weight decay 0.01, cosine schedule, untuned: learning rate 3e-3"
    ),
    "prodigy": Sweep(
        lambda lr: PackagedOptimizer("prodigyopt", "1.1.2", "Prodigy", lr, schedule="cosine"),
        (1.0,),
        "Prodigy of prodigyopt, which estimates its step size, cosine schedule, untuned: learning rate 1",
    ),
    "schedule_free_2.5e-3": Sweep(
        lambda lr: PackagedOptimizer("schedulefree", "1.4.1", "AdamWScheduleFree", lr, warmup=0.05),
        (2.5e-3,),
        "schedule-free AdamW of schedulefree, 5 % warm-up, untuned: learning rate 2.5e-3",
    ),
}
"""Baselines by name. The learning rate with the lowest median final training loss over seeds is chosen.

``"schedule_free"`` is the rule of this package, tuned; ``"schedule_free_2.5e-3"`` is the class of its authors, untuned.
"""


class Baselines:
    """What the baselines reach on problems, by content: where a task, its models or its horizon differ, it is another.

    A baseline is looked for in the user's file, then among those that come inside the package (3 seeds, the suites with
    their default data), and computed if it is in neither, which takes from seconds to minutes.

    Args:
        path: JSON file to read and to add to; ``None`` to keep what is computed in memory only.
        seeds: models trained at each learning rate, >= 1.
        shipped: whether to use what comes inside the package.
        device: where baselines are computed.

    Attributes:
        not_kept: why the last entry that was computed could not be written to the file; empty if it was.

    Raises:
        ValueError: if the file is not one of baselines.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        seeds: int = 3,
        *,
        shipped: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}.")
        self.path = None if path is None else Path(path)
        self.seeds = seeds
        self.device = device
        self.own: list[Entry] = read_entries(self.path) if self.path is not None and self.path.exists() else []
        self.shipped: list[Entry] = shipped_entries() if shipped else []
        self.not_kept = ""
        self._fingerprints: dict[int, tuple[Task, list[float]]] = {}

    def __call__(self, problem: Problem, name: str = "adamw") -> Measurement:
        """The measurement of baseline ``name`` on ``problem``, computed if it is not known.

        Raises:
            ValueError: if there is no such baseline.
            ImportError: if it has to be computed, and is of a package that is not installed.
        """
        found = self.find(problem, name)
        if found is None:
            found = self._compute(problem, name)
            self._keep(found)
        return found.measurement

    def find(self, problem: Problem, name: str) -> Entry | None:
        """What is known of baseline ``name`` on ``problem``, ``None`` if nothing.

        Raises:
            ValueError: if there is no such baseline.
        """
        key, marks = self.key(problem, name), self._fingerprint(problem.task)
        matching = (entry for entry in (*self.own, *self.shipped) if entry.key == key and entry.fits(marks))
        return next(matching, None)

    def key(self, problem: Problem, name: str) -> str:
        """A hash of what the numbers depend on as far as it is exact; :func:`fingerprint` has the rest."""
        if name not in BASELINES:
            raise ValueError(f"there is no baseline {name!r}; use one of {', '.join(map(repr, BASELINES))}.")
        task, sweep = problem.task, BASELINES[name]
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
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _fingerprint(self, task: Task) -> list[float]:
        """:func:`fingerprint`, computed once: it takes a while on a large model."""
        if id(task) not in self._fingerprints:
            self._fingerprints[id(task)] = (task, fingerprint(task))  # the task too, so that its id stays its own
        return self._fingerprints[id(task)][1]

    def _compute(self, problem: Problem, name: str) -> Entry:
        sweep = BASELINES[name]
        measured = sweep.run(problem, seeds=self.seeds, device=self.device)
        medians = [float(torch.nan_to_num(run.final_train, nan=torch.inf).median()) for run in measured]
        best = medians.index(min(medians))
        chosen = replace(
            measured[best], optimizer=name, learning_rate=sweep.learning_rates[best] if sweep.tuned else None
        )
        return Entry(self.key(problem, name), problem.name, self._fingerprint(problem.task), medians, chosen)

    def _keep(self, entry: Entry) -> None:
        """Keep an entry in memory, and in the file if that can be written."""
        self.own.append(entry)
        if self.path is None:
            return
        try:
            self.own = add_entries(self.path, self.own)
        except (OSError, ValueError) as error:
            if not self.not_kept:
                rank_zero_warn(f"baselines were computed but not kept ({cause(error)}).")
            self.not_kept = cause(error)


def shipped_entries() -> list[Entry]:
    """The baselines that come inside the package."""
    file = files("lightning_lopt.evaluation").joinpath(SHIPPED)
    return read_entries(Path(str(file))) if file.is_file() else []


def fingerprint(task: Task) -> list[float]:
    """Numbers that tell tasks of the same shapes apart: a machine changes their last digits, another task the first.

    The loss of a model that knows nothing, losses of one initial model on both splits, its loss at twice the weights,
    and for one mini-batch the loss and the RMS of the gradient.
    """
    params = task.init(generator(SEED, "key"))
    doubled = {name: 2 * value if name in task.roles else value for name, value in params.items()}
    grads, loss, _ = task.gradient(params, task.batch(generator(SEED, "key")))
    squares = torch.cat([grad.flatten().square() for grad in grads.values()])
    full: Sequence[float] = [float(task.loss(params, task.full_batch(split))) for split in ("train", "valid")]
    twice = float(task.loss(doubled, task.full_batch("valid")))
    marks = (task.loss_scale, *full, twice, float(loss), float(squares.mean().sqrt()))
    # what is not finite is so everywhere; files of JSON have no word for it
    return [float(f"{value:.6g}") if math.isfinite(value) else -1.0 for value in marks]
