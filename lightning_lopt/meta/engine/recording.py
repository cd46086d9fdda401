"""A recorded inner step, and the memory that this step reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.meta.batches import BatchDraws, Batches, batches_of
from lightning_lopt.meta.engine.execution import Advanced
from lightning_lopt.meta.engine.step import SteppedRuns
from lightning_lopt.meta.runs import InnerRuns, joined_groups, positions, separated
from lightning_lopt.meta.theta import Theta
from lightning_lopt.recording import WARM_UP, cloned, overwrite, record
from lightning_lopt.rules.base import State, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Split, Task

SMALL = 2**24
"""Largest number of parameters of all runs together for which launching kernels takes longer than running them."""

CHUNK = 2**26
"""Bytes of the batches that are made at once, unless a single step takes more."""

MAX_STEPS = 200
"""Largest number of steps whose batches are made at once."""


def recordable(tensors: Iterable[Tensor]) -> bool:
    """Whether steps on these parameters may be recorded: they are small, on a GPU, and without gradients."""
    return not torch.is_grad_enabled() and small_on_cuda(tensors)


def small_on_cuda(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors are on a CUDA device and have few entries together."""
    values = list(tensors)
    return all(value.is_cuda for value in values) and sum(value.numel() for value in values) <= SMALL


class Recording:
    """One inner step of all runs of a task, or of tasks with the same computation, and the memory of that step.

    Args:
        rule: the rule; a recording is for one rule only.
        theta: θ of each run by name, leading axis N.
        groups: inner runs that are batched.
        splits: splits whose losses are measured.
    """

    def __init__(
        self,
        rule: UpdateRule,
        theta: Theta,
        groups: Sequence[InnerRuns],
        splits: Sequence[Split],
    ) -> None:
        device = groups[0].device
        self.theta, self.params, self.state = pytree.tree_map(torch.clone, (theta, *joined_groups(groups)))
        self.memory_of_groups = separated(groups, self.params, self.state)
        self.rule, self.addresses, self.copies, self.splits = rule, _addresses(rule), groups[0].copies, splits
        draws = [BatchDraws(runs, generator(0, "shapes"), splits, 1)(1) for runs in groups]
        batches = batches_of(groups, draws, device)
        size = sum(value.nbytes for batch in batches.values() for value in batch.values())
        # number of steps whose batches are made at once
        self.steps_at_once = max(WARM_UP + 1, min(CHUNK // max(size, 1), MAX_STEPS))
        self.batches: Batches = {
            split: {name: value.expand(self.steps_at_once, *value.shape[1:]).clone() for name, value in batch.items()}
            for split, batch in batches.items()
        }
        self.losses: dict[Split, Tensor] = {}
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # index of the present batch
        self.position = positions(groups, device)
        self.replay: dict[int | None, Callable[[], object]] = {}

    def fits(self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], splits: Sequence[Split]) -> bool:
        """Whether this recording is for this rule and for tensors of these shapes and types."""
        size = len(next(iter(self.params.values()))) // len(groups)
        return (
            rule is self.rule
            and _addresses(rule) == self.addresses
            and all(runs.copies == self.copies for runs in groups)
            and _same_layout(groups[0].params, {name: value[:size] for name, value in self.params.items()})
            and _same_layout(theta, self.theta)
            and splits == self.splits
        )

    def prepare(self, step: Callable[..., SteppedRuns], task: Task, first_step: int, steps: int) -> None:
        """Record those phases of ``steps`` steps from step ``first_step`` on that are not recorded yet.

        The recording has no reference to ``step``, which has the signature of
        :func:`~lightning_lopt.meta.engine.step.advance_runs`, or to ``task``, since other tasks may use it later.

        Raises:
            RuntimeError: if a step cannot be recorded.
        """
        for phase in dict.fromkeys(map(self.rule.phase_of, range(first_step, first_step + steps))):
            if phase not in self.replay:
                self.row.zero_()
                self.replay[phase] = record(partial(self._one_step, step, task, phase))

    def _one_step(self, step: Callable[..., SteppedRuns], task: Task, phase: int | None) -> None:
        """One step in the memory of the recording, on the batches of the present row."""
        batches = {
            split: {name: value.index_select(0, self.row)[0] for name, value in batch.items()}
            for split, batch in self.batches.items()
        }
        params, state, losses = step(
            self.rule, task, self.theta, self.params, self.state, batches, self.position, phase
        )
        overwrite([*_pairs(self.params, params), *_state_pairs(self.state, state)])
        for split, loss in losses.items():
            if split not in self.losses:
                self.losses[split] = loss.new_zeros(self.steps_at_once, *loss.shape)
            self.losses[split].index_copy_(0, self.row, loss[None])
        self.row += 1
        self.position.step.add_(1)

    def steps(self, theta: Theta, groups: Sequence[InnerRuns], draws: Sequence[BatchDraws], steps: int) -> Advanced:
        """As :meth:`Execution.steps <lightning_lopt.meta.engine.Execution.steps>`, after :meth:`prepare`."""
        position = positions(groups, self.row.device)
        inputs = [*_pairs(self.theta, theta), *zip(self.position, position, strict=True)]
        for runs, (params, state) in zip(groups, self.memory_of_groups, strict=True):
            inputs += [*_pairs(params, runs.params), *_state_pairs(state, runs.state)]
        # values never overlap this memory, since the results of earlier calls are copies
        torch._foreach_copy_([target for target, _ in inputs], [value for _, value in inputs])
        losses: list[dict[Split, Tensor]] = []
        for offset in range(0, steps, self.steps_at_once):
            chunk = min(self.steps_at_once, steps - offset)
            batches = batches_of(groups, [group_draws(chunk) for group_draws in draws], self.row.device)
            for split, batch in batches.items():
                for name, values in batch.items():
                    self.batches[split][name][:chunk].copy_(values)
            self.row.zero_()
            for number in range(groups[0].step + offset, groups[0].step + offset + chunk):
                self.replay[self.rule.phase_of(number)]()
            losses.append({split: loss[:chunk].clone() for split, loss in self.losses.items()})
        return Advanced(
            cloned(self.memory_of_groups), {split: torch.cat([loss[split] for loss in losses]) for split in losses[0]}
        )


def _pairs(targets: dict[str, Tensor], values: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(target, values[name]) for name, target in targets.items()]


def _state_pairs(targets: State, values: State) -> list[tuple[Tensor, Tensor]]:
    pairs = [pair for name, tensors in targets.tensors.items() for pair in _pairs(tensors, values.tensors[name])]
    return pairs + _pairs(targets.shared, values.shared)


def _same_layout(tensors: dict[str, Tensor], recorded: dict[str, Tensor]) -> bool:
    return tensors.keys() == recorded.keys() and all(
        value.shape == recorded[name].shape and value.dtype == recorded[name].dtype for name, value in tensors.items()
    )


def _addresses(rule: UpdateRule) -> list[int]:
    return [value.data_ptr() for value in rule.parameters()]
