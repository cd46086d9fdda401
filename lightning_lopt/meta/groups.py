"""Groups of inner runs: their task and horizon, their restarts, and their state in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lopt.meta.estimators.base import Estimator
from lightning_lopt.meta.horizons import Horizons
from lightning_lopt.meta.runs import InnerRuns, device_of, map_runs
from lightning_lopt.rules.base import State, UpdateRule
from lightning_lopt.seeding import derive_seed
from lightning_lopt.tasks.task_mixture import TaskMixture


@dataclass
class Group:
    """Inner runs of one task, followed by inner runs of another task when they are finished.

    All random draws depend only on the seed, the number of the group and how often it has started, and not on the
    process that advances it.

    Attributes:
        number: number among all groups of all processes.
        groups: number of all groups.
        seed: seed of the meta-training.
        starts: how often runs have been started.
        runs: the present runs.
    """

    number: int
    groups: int
    seed: int
    starts: int = 0
    runs: InnerRuns | None = None

    @property
    def run_seed(self) -> int:
        """The seed of the present runs and of their task."""
        return derive_seed(self.seed, "runs", self.number, self.starts)

    def begin(
        self, rule: UpdateRule, estimator: Estimator, mixture: TaskMixture, horizons: Horizons, outer_step: int
    ) -> InnerRuns:
        """Return the present runs, or start new runs if the present runs are finished."""
        if self.runs is None or self.runs.finished:
            self.starts += 1
            first_of = (self.number, self.groups) if self.starts == 1 else None
            horizon = horizons.draw(self.run_seed, outer_step, first_of)
            self.runs = estimator.start(rule, mixture.sample(self.run_seed), horizon=horizon, seed=self.run_seed)
        return self.runs

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and strings. Perturbations are not saved, since they are derived from the seed.

        Finished runs are not saved, since new runs follow.
        """
        if self.runs is None or self.runs.finished:
            return {"number": self.number, "starts": self.starts}
        return {
            "number": self.number,
            "starts": self.starts,
            "task": self.runs.task.name,
            "params": self.runs.params,
            "tensors": self.runs.state.tensors,
            "shared": self.runs.state.shared,
            "step": self.runs.step,
            "horizon": self.runs.horizon,
            "truncations": self.runs.truncations,
        }

    def load_state_dict(
        self, state: dict[str, Any], rule: UpdateRule, estimator: Estimator, mixture: TaskMixture
    ) -> None:
        """Restore the runs of a checkpoint, on the device of ``rule``.

        Raises:
            ValueError: if the mixture gives another task, or the estimator has another number of particles.
        """
        self.starts = state["starts"]
        if "task" not in state:
            return
        task = mixture.sample(self.run_seed)
        if task.name != state["task"]:
            raise ValueError(
                f"this checkpoint was training on task {state['task']!r}, but these task families give {task.name!r} "
                "at the same seed; resume with the families, data and seed of the saved run."
            )
        particles = len(next(iter(state["params"].values())))
        if particles != estimator.particles:
            raise ValueError(
                f"this checkpoint holds {particles} inner runs per group, but the estimator has {estimator.particles}; "
                "resume with the estimator of the saved run."
            )
        runs = InnerRuns(
            task,
            state["params"],
            State(state["tensors"], state["shared"]),
            state["step"],
            state["horizon"],
            self.run_seed,
            copies=particles // estimator.terms,
            truncations=state["truncations"],
        )
        device = device_of(rule)
        self.runs = map_runs(runs, lambda value: value.to(device))


def groups_of_rank(groups: int, seed: int, rank: int, ranks: int) -> list[Group]:
    """The groups that one of several processes advances: ``rank``, ``rank + ranks``, and so on.

    Raises:
        ValueError: if ``groups`` is not a multiple of ``ranks``.
    """
    if groups % ranks:
        raise ValueError(
            f"groups={groups} cannot be shared evenly by {ranks} processes; set groups to a multiple of {ranks} (with "
            "fewer pairs in each, the work stays the same)."
        )
    return [Group(number, groups, seed) for number in range(rank, groups, ranks)]


def states_by_number(states: Sequence[dict[str, Any]], groups: int) -> dict[int, dict[str, Any]]:
    """The states of groups in a checkpoint, by number.

    Raises:
        ValueError: if ``states`` does not hold the states of exactly ``groups`` groups.
    """
    by_number = {state["number"]: state for state in states}
    if sorted(by_number) != list(range(groups)):
        raise ValueError(
            f"this checkpoint holds {len(by_number)} groups of inner runs, but MetaTrainer has groups={groups}; resume "
            "with the settings of the saved run."
        )
    return by_number
