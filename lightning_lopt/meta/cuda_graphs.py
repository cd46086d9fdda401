"""The inner step as a CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.meta.inner import (
    Advance,
    Draws,
    InnerRuns,
    Made,
    Stepped,
    Theta,
    advance_runs,
    batches_of,
    joined,
    make_steps,
    parted,
    positions,
)
from lightning_lopt.rules.base import State, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Split, Task

SMALL = 2**24  # parameters of all runs together up to which launching kernels costs more than running them
CHUNK = 2**26  # bytes of the batches that are made at once, unless a single step takes more
MOST = 200  # steps that they are made for at once
WARM_UP = 2  # steps before one is recorded


class CudaGraphs:
    """Inner steps recorded once for each kind of task, and replayed: the numbers of what is recorded, bit for bit.

    Small inner runs leave a GPU waiting for Python: a step is hundreds of kernels of a few microseconds. A recorded
    step is one launch, in which the runs advance and their losses are written down; what the mini-batches are made of
    is drawn on the CPU and sent, and they are looked up, for many steps at once.

    A recording is used on one stream alone, by one task after the other where they compute the same
    (:attr:`Task.computation <lightning_lopt.tasks.Task.computation>`), and lives as long as one of these tasks.

    On other devices, for runs that are not small, and where gradients flow through the steps, this is ``advance``
    itself; so it is, with a warning, where recording fails (a step that copies from the CPU or waits for the device).

    Args:
        advance: what is recorded: :func:`~lightning_lopt.meta.inner.advance_runs` or a
            :class:`~lightning_lopt.meta.compiled.CompiledAdvance` of it.
    """

    def __init__(self, advance: Advance = advance_runs) -> None:
        self.advance = advance
        # By task, stream and shapes; None where it cannot be.
        self.recordings: WeakKeyDictionary[Task, dict[Hashable, Recording | None]] = WeakKeyDictionary()
        self.shared: WeakValueDictionary[Hashable, Recording] = WeakValueDictionary()

    def __call__(self, *arguments: Any) -> Stepped:
        """One step, not recorded."""
        return self.advance(*arguments)

    def make_steps(
        self, rule: UpdateRule, theta: Theta, many: Sequence[InnerRuns], draws: Sequence[Draws], steps: int
    ) -> Made:
        """As :func:`~lightning_lopt.meta.inner.make_steps`."""
        if torch.is_grad_enabled() or not small_on_cuda([value for runs in many for value in runs.params.values()]):
            return make_steps(self.advance, rule, theta, many, draws, steps)
        recording = self._recording(rule, theta, many, draws[0].splits)
        if recording is None:
            return make_steps(self.advance, rule, theta, many, draws, steps)
        return recording.make_steps(theta, many, draws, steps)

    def _recording(
        self, rule: UpdateRule, theta: Theta, many: Sequence[InnerRuns], splits: Sequence[Split]
    ) -> Recording | None:
        """A recording for these runs on this stream: one that a task of theirs has, that of others, or a new one."""
        first = many[0]
        key = _current_stream(), len(many), *[value.shape for value in first.params.values()]
        own = self.recordings.setdefault(first.task, {})
        found = own.get(key)
        if key not in own or (found and not found.fits(rule, theta, many, splits)):
            kind = first.task.computation
            found = None if kind is None else self.shared.get((kind, key))
            if found is None or not found.fits(rule, theta, many, splits):
                found = self._recorded(rule, theta, many, splits)
            if found is not None and kind is not None:
                self.shared[kind, key] = found
        for runs in many:
            self.recordings.setdefault(runs.task, {})[key] = found
        return found

    def _recorded(
        self, rule: UpdateRule, theta: Theta, many: Sequence[InnerRuns], splits: Sequence[Split]
    ) -> Recording | None:
        try:
            return Recording(self.advance, rule, theta, many, splits)
        except Exception as error:  # whatever is wrong with the step itself is raised again where it is not recorded
            rank_zero_warn(f"inner steps of {many[0].task.name} are not recorded: {type(error).__name__}: {error}")
            return None


class Recording:
    """One inner step of all runs of a task, or of tasks that compute the same, and the memory that it reads and writes.

    Args:
        advance, rule, theta, many: of the step.
        splits: of which losses are measured.
    """

    def __init__(
        self, advance: Advance, rule: UpdateRule, theta: Theta, many: Sequence[InnerRuns], splits: Sequence[Split]
    ) -> None:
        device = next(iter(many[0].params.values())).device
        params, state = joined(many)
        self.theta, self.params, self.state = pytree.tree_map(torch.clone, (theta, params, state))
        self.places = parted(many, self.params, self.state)  # of each of the runs
        self.rule, self.addresses, self.copies, self.splits = rule, _addresses(rule), many[0].copies, splits
        first = batches_of(many, [Draws(runs, generator(0, "shapes"), splits, 1)(1) for runs in many], device)
        size = sum(value.nbytes for batch in first.values() for value in batch.values())
        self.most = max(WARM_UP + 1, min(CHUNK // max(size, 1), MOST))  # steps that batches are made for at once
        self.batches = {
            split: {name: value.expand(self.most, *value.shape[1:]).clone() for name, value in batch.items()}
            for split, batch in first.items()
        }
        self.losses: dict[Split, Tensor] = {}
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # among the batches
        self.step, self.total_steps = positions(many, device)

        task = many[0].task  # the runs themselves, with their memory, are not kept

        def step(phase: int | None) -> None:
            batches = {
                split: {name: value.index_select(0, self.row)[0] for name, value in batch.items()}
                for split, batch in self.batches.items()
            }
            params, state, losses = advance(
                rule, task, self.theta, self.params, self.state, batches, self.step, self.total_steps, phase
            )
            overwrite([*_pairs(self.params, params), *_state_pairs(self.state, state)])
            for split, loss in losses.items():
                if split not in self.losses:
                    self.losses[split] = loss.new_zeros(self.most, *loss.shape)
                self.losses[split].index_copy_(0, self.row, loss[None])
            self.row += 1
            self.step += 1

        self.replay: dict[int | None, Callable[[], object]] = {}
        for phase in rule.phases:
            self.row.zero_()
            self.replay[phase] = record(partial(step, phase))

    def fits(self, rule: UpdateRule, theta: Theta, many: Sequence[InnerRuns], splits: Sequence[Split]) -> bool:
        """Whether this is a recording of steps of that rule on tensors like these."""
        size = len(next(iter(self.params.values()))) // len(many)
        return (
            rule is self.rule
            and _addresses(rule) == self.addresses
            and all(runs.copies == self.copies for runs in many)
            and _alike(many[0].params, {name: value[:size] for name, value in self.params.items()})
            and _alike(theta, self.theta)
            and splits == self.splits
        )

    def make_steps(self, theta: Theta, many: Sequence[InnerRuns], draws: Sequence[Draws], steps: int) -> Made:
        """As :func:`~lightning_lopt.meta.inner.make_steps`."""
        step, total_steps = positions(many, self.row.device)
        given = [*_pairs(self.theta, theta), (self.step, step), (self.total_steps, total_steps)]
        for runs, (params, state) in zip(many, self.places, strict=True):
            given += [*_pairs(params, runs.params), *_state_pairs(state, runs.state)]
        # no value is a view of a place: what was handed out are copies
        torch._foreach_copy_([place for place, _ in given], [value for _, value in given])
        losses: list[dict[Split, Tensor]] = []
        for first in range(0, steps, self.most):
            chunk = min(self.most, steps - first)
            for split, batch in batches_of(many, [own(chunk) for own in draws], self.row.device).items():
                for name, values in batch.items():
                    self.batches[split][name][:chunk].copy_(values)
            self.row.zero_()
            for number in range(many[0].step + first, many[0].step + first + chunk):
                self.replay[self.rule.phase_of(number)]()
            losses.append({split: loss[:chunk].clone() for split, loss in self.losses.items()})
        return _cloned(self.places), {split: torch.cat([loss[split] for loss in losses]) for split in losses[0]}


def record(function: Callable[[], None]) -> Callable[[], object]:
    """What does on the GPU what ``function`` did there, without Python."""
    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # whatever is set up once is set up here
        for _ in range(WARM_UP):
            function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@cache
def _stream() -> torch.cuda.Stream:
    """Where steps are recorded: always the same, since what torch.compile makes is for one stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0


def _cloned(tree: Any) -> Any:
    """A copy of all tensors of a tree, in one kernel."""
    values, structure = pytree.tree_flatten(tree)
    places = [torch.empty_like(value) for value in values]
    torch._foreach_copy_(places, values)
    return pytree.tree_unflatten(places, structure)


def small_on_cuda(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them live on a CUDA device and have few entries together."""
    values = list(tensors)
    return all(value.is_cuda for value in values) and sum(value.numel() for value in values) <= SMALL


def _pairs(places: dict[str, Tensor], values: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(place, values[name]) for name, place in places.items()]


def _state_pairs(places: State, values: State) -> list[tuple[Tensor, Tensor]]:
    own = [pair for name, tensors in places.tensors.items() for pair in _pairs(tensors, values.tensors[name])]
    return own + _pairs(places.shared, values.shared)


def overwrite(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each value to its place, as if all were copied at once: a value may be (a view of) another's place."""
    moved = [(place, value) for place, value in pairs if value is not place]
    storages = {place.untyped_storage().data_ptr() for place, _ in pairs}
    values = [value.clone() if value.untyped_storage().data_ptr() in storages else value for _, value in moved]
    if moved:
        torch._foreach_copy_([place for place, _ in moved], values)


def _alike(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        value.shape == others[name].shape and value.dtype == others[name].dtype for name, value in some.items()
    )


def _addresses(rule: UpdateRule) -> list[int]:
    return [value.data_ptr() for value in rule.parameters()]
