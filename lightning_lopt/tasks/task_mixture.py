"""Tasks drawn from several families."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Task, TaskFamily
from lightning_lopt.tasks.transforms import Augmented


class TaskMixture:
    """Task families that are drawn with equal probability.

    Args:
        families: at least one; a family that occurs twice is drawn twice as often.

    Example:
        >>> from lightning_lopt.tasks import LeastSquares, QuadraticFamily
        >>> mixture = TaskMixture([QuadraticFamily(), LeastSquares(), LeastSquares()])
        >>> names = [mixture.family(seed) for seed in range(300)]
        >>> names.count("quadratic"), mixture.sample(seed=0).name
        (115, 'quadratic/d2/k10/n0.1/fb4963')
    """

    def __init__(self, families: Sequence[TaskFamily]) -> None:
        if not families:
            raise ValueError("a TaskMixture needs at least one task family, got none.")
        self.families = tuple(families)

    def sample(self, seed: int) -> Task:
        """The task that belongs to ``seed``: the same seed always gives the same task."""
        family, draws = self._draw(seed)
        return family.sample(draws)

    def family(self, seed: int) -> str:
        """Name of the family of the task that belongs to ``seed``."""
        return self._draw(seed)[0].name

    @property
    def trained_on(self) -> dict[str, list[str]]:
        """Names of the families and of their data, for the record of meta-training in ``config.json``."""
        names: set[str] = set()
        data: set[str] = set()
        for family in self.families:
            plain = family.family if isinstance(family, Augmented) else family
            # A task of Celo4 is also a task of its parent class, so the names of parent classes are included.
            parent_names = (vars(parent).get("name") for parent in type(plain).__mro__)
            names |= {plain.name, *(name for name in parent_names if isinstance(name, str))}
            for key in ("data", "text"):
                entry = plain.config.get(key, [])
                data |= {entry} if isinstance(entry, str) else set(entry)
        return {"families": sorted(names), "data": sorted(data)}

    def _draw(self, seed: int) -> tuple[TaskFamily, torch.Generator]:
        draws = generator(seed, "task")
        return self.families[int(torch.randint(len(self.families), (), generator=draws))], draws
