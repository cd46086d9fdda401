"""The inner step as a CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import chain, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.meta.inner import Advance, InnerRuns, Stepped, Theta, advance_runs, looked_up, make_steps, repeated
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.tasks.base import Batch, Split, Task

SMALL = 2**24  # parameters of all runs together up to which launching kernels costs more than running them
CHUNK = 2**26  # bytes that are drawn and sent at once, unless a single step takes more
WARM_UP = 2  # steps before one is recorded


class CudaGraphs:
    """Inner steps recorded once for each task, and replayed: the numbers of what is recorded, bit for bit.

    Small inner runs leave a GPU waiting for Python: a step is hundreds of kernels of a few microseconds. A recorded
    step is one launch, in which the mini-batch is looked up, the runs advance and their losses are written down; what
    the batches are made of is drawn on the CPU and sent for many steps at once.

    On other devices, for runs that are not small, and where gradients flow through the steps, this is ``advance``
    itself; so it is, with a warning, where recording fails (a step that copies from the CPU or waits for the device).

    Args:
        advance: what is recorded: :func:`~lightning_lopt.meta.inner.advance_runs` or a
            :class:`~lightning_lopt.meta.compiled.CompiledAdvance` of it.
    """

    def __init__(self, advance: Advance = advance_runs) -> None:
        self.advance = advance
        self.recordings: WeakKeyDictionary[Task, Recording | None] = WeakKeyDictionary()  # None: it cannot be

    def __call__(self, *arguments: Any) -> Stepped:
        """One step, not recorded."""
        return self.advance(*arguments)

    def make_steps(
        self, rule: UpdateRule, theta: Theta, runs: InnerRuns, drawn: Iterable[dict[Split, Batch]]
    ) -> Stepped:
        """As :func:`~lightning_lopt.meta.inner.make_steps`."""
        if torch.is_grad_enabled() or not small_on_cuda(runs.params.values()):
            return make_steps(self.advance, rule, theta, runs, drawn)
        drawn = iter(drawn)
        one = next(drawn)
        drawn = chain([one], drawn)
        recording = self.recordings.get(runs.task)
        if runs.task not in self.recordings or (recording and not recording.fits(rule, theta, runs, one)):
            recording = self.recordings[runs.task] = self._recorded(rule, theta, runs, one)
        if recording is None:
            return make_steps(self.advance, rule, theta, runs, drawn)
        return recording.make_steps(theta, runs, drawn)

    def _recorded(self, rule: UpdateRule, theta: Theta, runs: InnerRuns, one: dict[Split, Batch]) -> Recording | None:
        try:
            return Recording(self.advance, rule, theta, runs, one)
        except Exception as error:  # whatever is wrong with the step itself is raised again where it is not recorded
            rank_zero_warn(f"inner steps of {runs.task.name} are not recorded: {type(error).__name__}: {error}")
            return None


class Recording:
    """One inner step of all runs of a task, and the memory that it reads and writes.

    Args:
        advance, rule, theta, runs: of the step.
        one: what a step needs to have drawn.
    """

    def __init__(
        self, advance: Advance, rule: UpdateRule, theta: Theta, runs: InnerRuns, one: dict[Split, Batch]
    ) -> None:
        device = next(iter(runs.params.values())).device
        self.theta, self.params, self.state = pytree.tree_map(torch.clone, (theta, runs.params, runs.state))
        self.rule, self.addresses, self.copies, self.one = rule, _addresses(rule), runs.copies, one
        size = sum(value.nbytes for draw in one.values() for value in draw.values())
        self.most = max(WARM_UP + 1, min(CHUNK // max(size, 1), 1000))  # steps that are drawn and sent at once
        self.drawn = {
            split: {
                name: value.to(device).expand(self.most, *value.shape).clone()
                for name, value in repeated(draw, runs.copies).items()
            }
            for split, draw in one.items()
        }
        self.losses: dict[Split, Tensor] = {}
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # among what was drawn
        self.step, self.total_steps = torch.zeros((), device=device), torch.ones((), device=device)

        task = runs.task  # the runs themselves, with their memory, are not kept

        def step(full: bool) -> None:
            drawn = {
                split: {name: value.index_select(0, self.row)[0] for name, value in draw.items()}
                for split, draw in self.drawn.items()
            }
            batches = looked_up(task, drawn, 1)
            params, state, losses = advance(
                rule, task, self.theta, self.params, self.state, batches, self.step, self.total_steps, full
            )
            overwrite([*_pairs(self.params, params), *_state_pairs(self.state, state)])
            for split, loss in losses.items():
                if split not in self.losses:
                    self.losses[split] = loss.new_zeros(self.most, *loss.shape)
                self.losses[split].index_copy_(0, self.row, loss[None])
            self.row += 1
            self.step += 1

        kinds = (True,) if rule.period == 1 else (True, False)
        self.replay = {full: record(partial(step, full)) for full in kinds}

    def fits(self, rule: UpdateRule, theta: Theta, runs: InnerRuns, one: dict[Split, Batch]) -> bool:
        """Whether this is a recording of steps of that rule on tensors like these."""
        return (
            rule is self.rule
            and _addresses(rule) == self.addresses
            and runs.copies == self.copies
            and _alike(runs.params, self.params)
            and _alike(theta, self.theta)
            and one.keys() == self.one.keys()
            and all(_alike(draw, self.one[split]) for split, draw in one.items())
        )

    def make_steps(self, theta: Theta, runs: InnerRuns, drawn: Iterable[dict[Split, Batch]]) -> Stepped:
        """As :func:`~lightning_lopt.meta.inner.make_steps`."""
        given = [*_pairs(self.theta, theta), *_pairs(self.params, runs.params), *_state_pairs(self.state, runs.state)]
        overwrite(given)
        self.step.fill_(runs.step)
        self.total_steps.fill_(runs.horizon)
        first = runs.step
        losses: list[dict[Split, Tensor]] = []
        drawn = iter(drawn)
        while chunk := list(islice(drawn, self.most)):
            for split, places in self.drawn.items():
                for name, place in places.items():
                    values = torch.stack([one[split][name] for one in chunk])
                    values = values.pin_memory() if place.is_cuda else values
                    for part in place[: len(chunk)].chunk(self.copies, dim=1):
                        part.copy_(values, non_blocking=True)
            self.row.zero_()
            for number in range(first, first + len(chunk)):
                self.replay[self.rule.is_full(number)]()
            first += len(chunk)
            losses.append({split: loss[: len(chunk)].clone() for split, loss in self.losses.items()})
        after: tuple[Params, State] = pytree.tree_map(torch.clone, (self.params, self.state))
        return *after, {split: torch.cat([loss[split] for loss in losses]) for split in losses[0]}


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
