"""Mini-batches of inner runs: random draws on the CPU, and batches on the device that depend only on these draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_lopt.devices import sent
from lightning_lopt.meta.runs import InnerRuns
from lightning_lopt.tasks.accelerations import draws_in_one_call
from lightning_lopt.tasks.base import Batch, Split

Batches = dict[Split, Batch]


class BatchDraws:
    """Results of :meth:`Task.draw` for the mini-batches of a group of inner runs, for several steps at once.

    Args:
        runs: the inner runs.
        generator: random generator of the draws; each step draws P mini-batches.
        splits: splits of the mini-batches.
        steps: number of steps that get new draws; for later steps the last draw is repeated.
    """

    def __init__(self, runs: InnerRuns, generator: torch.Generator, splits: Sequence[Split], steps: int) -> None:
        self.task, self.pairs = runs.task, runs.pairs
        self.generator, self.splits, self.undrawn_steps = generator, splits, steps
        self.last: Batches = {}  # the draw for the last step so far, with an axis of length 1 in front

    def __call__(self, steps: int) -> Batches:
        """The draws for the next ``steps`` steps: axes ``(steps, P)`` in front."""
        new_steps = min(steps, self.undrawn_steps)
        self.undrawn_steps -= new_steps
        pieces = [self._draw(new_steps)] if new_steps else []
        if new_steps:
            self.last = tree_map(lambda value: value[-1:], pieces[0])
        pieces += [self.last] * (steps - new_steps)
        draws: Batches = pieces[0] if len(pieces) == 1 else tree_map(lambda *values: torch.cat(values), *pieces)
        return draws

    def _draw(self, steps: int) -> Batches:
        if len(self.splits) == 1 and draws_in_one_call(self.task):
            split = self.splits[0]
            return {split: self.task.draw(self.generator, steps, self.pairs, split=split)}
        draws = [
            {split: self.task.draw(self.generator, self.pairs, split=split) for split in self.splits}
            for _ in range(steps)
        ]
        stacked: Batches = tree_map(lambda *values: torch.stack(values), *draws)
        return stacked


def batches_of(groups: Sequence[InnerRuns], draws: Sequence[Batches], device: torch.device) -> Batches:
    """The mini-batches of N runs on ``device``, from the draws for each group: first axes ``(steps, N)``."""
    batches: dict[Split, dict[str, list[Tensor]]] = {}
    for runs, group_draws in zip(groups, draws, strict=True):
        for split, draw in group_draws.items():
            draw_on_device = {name: sent(value, device) for name, value in draw.items()}
            for name, value in runs.task.look_up(draw_on_device, split).items():
                batches.setdefault(split, {}).setdefault(name, []).extend([value] * runs.copies)
    return {
        split: {name: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for name, parts in batch.items()}
        for split, batch in batches.items()
    }
