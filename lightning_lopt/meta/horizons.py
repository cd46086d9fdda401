"""The lengths of inner runs, and their change over meta-training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_lopt.seeding import generator

LONGEST = 20_000
"""Largest horizon."""


@dataclass(frozen=True)
class Horizons:
    r"""Horizons drawn log-uniformly between a shortest and a longest horizon.

    With a curriculum, the longest horizon grows from ``shortest`` to ``longest`` by the same factor in each outer step:

    .. math:: \text{longest}(s) = \text{shortest} \cdot (\text{longest} / \text{shortest})^{\min(1, s / C)}

    Args:
        shortest: shortest horizon in inner steps, >= 1.
        longest: longest horizon in inner steps, from ``shortest`` to 20,000; ``None`` for constant horizons.
        curriculum: number C of outer steps after which ``longest`` is reached, >= 0; 0 for no curriculum.
        staggered: cut the first run of each group to a share of its horizon, evenly spread over the groups, so that
            groups are out of phase from the first outer step on and their truncations cover all parts of a run.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from lightning_lopt import AdamRule, MetaTrainer, PES
        >>> horizons = Horizons(100, 1000, curriculum=500)
        >>> meta_trainer = MetaTrainer(AdamRule(), PES(truncation=50), horizons=horizons)
        >>> horizons.longest_at(0), horizons.longest_at(250), horizons.longest_at(500)
        (100.0, 316.22776601683796, 1000.0)
    """

    shortest: int
    longest: int | None = None
    curriculum: int = 0
    staggered: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.last <= LONGEST:
            raise ValueError(
                f"horizons must be (shortest, longest) with 1 <= shortest <= longest <= {LONGEST}, got "
                f"({self.shortest!r}, {self.last!r})."
            )
        if self.curriculum < 0:
            raise ValueError(f"curriculum must be a number of outer steps >= 0, got {self.curriculum!r}.")

    @classmethod
    def of(cls, value: Horizons | int | tuple[int, int]) -> Horizons:
        """Horizons from one constant or from (shortest, longest); a :class:`Horizons` is returned unchanged.

        >>> Horizons.of((100, 1000))
        Horizons(shortest=100, longest=1000, curriculum=0, staggered=True)
        """
        if isinstance(value, Horizons):
            return value
        return cls(value) if isinstance(value, int) else cls(*value)

    @property
    def last(self) -> int:
        """The longest horizon after the curriculum."""
        return self.shortest if self.longest is None else self.longest

    def longest_at(self, outer_step: int) -> float:
        """The longest horizon that may be drawn in this outer step.

        >>> Horizons(10, 1000, curriculum=100).longest_at(50)
        100.0
        """
        progress = min(1.0, outer_step / self.curriculum) if self.curriculum else 1.0
        return float(self.shortest * (self.last / self.shortest) ** progress)

    def draw(self, seed: int, outer_step: int, first_of: tuple[int, int] | None = None) -> int:
        """Draw a horizon; its random part depends only on ``seed``.

        Args:
            seed: seed of the runs.
            outer_step: outer step at which the runs start.
            first_of: number of the group and number of all groups, for the first runs of a group; else ``None``.
        """
        draws = generator(seed, "horizon")
        share, offset = torch.rand(2, generator=draws, dtype=torch.float64).tolist()
        horizon = float(self.shortest * (self.longest_at(outer_step) / self.shortest) ** share)
        if self.staggered and first_of is not None:
            group, groups = first_of
            horizon *= (group + offset) / groups
        return max(1, round(horizon))
