"""The unroll engine: many inner runs of one task, each with its own θ, side by side under ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_lopt.devices import sent
from lightning_lopt.rules.base import Params, State, StepContext, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Batch, Split, Task

Theta = dict[str, Tensor]


@dataclass(frozen=True)
class InnerRuns:
    """Inner runs of one task in lock-step: for meta-training ``2 P``, first all ``+`` particles, then all ``-``.

    The two runs of a pair begin at the same parameters and see the same batches (common random numbers); pairs differ.
    For measuring, ``copies`` other than 2 share initial parameters and batches in the same way.

    Attributes:
        task: the problem all of them solve.
        params: parameters, leading axis ``copies x P``.
        state: state of the rule, leading axis ``copies x P``.
        step: inner steps made so far.
        horizon: inner steps planned, the rule's ``total_steps``.
        seed: what initial parameters, batches and perturbations of these runs are derived from.
        copies: runs that share initial parameters and batches.
        truncations: how many times an estimator has advanced them.
        noise_sum: perturbations of θ added up since the runs began, shape ``(P, entries of θ)`` (for PES, which
            derives them from ``seed`` again where this is ``None``, as after a checkpoint).
    """

    task: Task
    params: Params
    state: State
    step: int
    horizon: int
    seed: int
    copies: int = 2
    truncations: int = 0
    noise_sum: Tensor | None = None

    @property
    def count(self) -> int:
        """How many they are, copies included."""
        return len(next(iter(self.params.values())))

    @property
    def finished(self) -> bool:
        return self.step >= self.horizon


def start_runs(rule: UpdateRule, task: Task, *, pairs: int, horizon: int, seed: int, copies: int = 2) -> InnerRuns:
    """Inner runs before their first step; pair ``p`` is initialised from ``(seed, "init", p)`` alone."""
    inits = [task.init(generator(seed, "init", pair)) for pair in range(pairs)]
    device = device_of(rule)
    params = {name: sent(torch.stack([init[name] for init in inits] * copies), device) for name in inits[0]}
    trained = {name: value for name, value in params.items() if name in task.roles}
    state = vmap(lambda one: rule.init_state(one, task.roles))(trained)
    return InnerRuns(task, params, state, 0, horizon, seed, copies)


def stacked_theta(rules: Sequence[UpdateRule], seeds: int) -> Theta:
    """θ of several rules that differ in it alone, each repeated for ``seeds`` runs: leading axis ``rules x seeds``."""
    return {
        name: torch.stack([rule.get_parameter(name).detach() for rule in rules]).repeat_interleave(seeds, 0)
        for name, _ in rules[0].named_parameters()
    }


def device_of(rule: UpdateRule) -> torch.device:
    """The device of the rule's parameters, where its inner runs live."""
    return next((parameter.device for parameter in rule.parameters()), torch.device("cpu"))


def map_runs(runs: InnerRuns, function: Callable[[Tensor], Tensor]) -> InnerRuns:
    """The runs with ``function`` applied to each tensor of their parameters and of the rule's state."""
    params = {name: function(value) for name, value in runs.params.items()}
    tensors = {name: {key: function(value) for key, value in own.items()} for name, own in runs.state.tensors.items()}
    shared = {key: function(value) for key, value in runs.state.shared.items()}
    return replace(runs, params=params, state=State(tensors, shared))


def inner_step(
    rule: UpdateRule,
    theta: Theta,
    task: Task,
    params: Params,
    state: State,
    batches: dict[Split, Batch],
    step: Tensor,
    total_steps: Tensor,
    phase: int | None = None,
) -> tuple[Params, State, dict[Split, Tensor]]:
    """One step of one inner run: new parameters, new state, and losses before the step. Pure.

    ``batches["train"]`` is trained on; of others the loss is measured.
    """
    grads, loss, carried = task.gradient(params, batches["train"])
    trained = {name: params[name] for name in grads}
    context = StepContext(step, total_steps, loss, task.roles, phase=phase)
    losses = {split: loss if split == "train" else task.loss(params, batch) for split, batch in batches.items()}
    updates, state = functional_call(rule, theta, (trained, grads, state, context))
    return params | {name: value + updates[name] for name, value in trained.items()} | carried, state, losses


def advance_runs(
    rule: UpdateRule,
    task: Task,
    theta: Theta,
    params: Params,
    state: State,
    batches: dict[Split, Batch],
    step: Tensor,
    total_steps: Tensor,
    phase: int | None = None,
) -> tuple[Params, State, dict[Split, Tensor]]:
    """:func:`inner_step` for all runs side by side: leading axis N on θ, parameters, state, batches, and the losses.

    Step and horizon are 0-dim where all runs have the same, or of shape ``(N,)``: then those at their horizon stay as
    they are.
    """
    shared = step.ndim == 0

    def one(
        theta: Theta, params: Params, state: State, batches: dict[Split, Batch], step: Tensor, total_steps: Tensor
    ) -> Stepped:
        after, moved, losses = inner_step(rule, theta, task, params, state, batches, step, total_steps, phase)
        if not shared:
            going = step < total_steps
            after, moved = tree_map(lambda new, old: torch.where(going, new, old), (after, moved), (params, state))
        return after, moved, losses

    place = None if shared else 0
    return vmap(one, in_dims=(0, 0, 0, 0, place, place))(theta, params, state, batches, step, total_steps)


Stepped = tuple[Params, State, dict[Split, Tensor]]
Made = tuple[list[tuple[Params, State]], dict[Split, Tensor]]
Advance = Callable[[UpdateRule, Task, Theta, Params, State, dict[Split, Batch], Tensor, Tensor, int | None], Stepped]
"""The signature of :func:`advance_runs`, which something with the same numbers may stand in for.

If it has a method ``make_steps``, that one stands in for :func:`make_steps` too.
"""


class Draws:
    """What the mini-batches of some inner runs are made of, for as many steps at once as are asked for.

    Args:
        runs: whose mini-batches they are.
        generator: where they come from, P at a time.
        splits: of which mini-batches are drawn.
        steps: how many they are drawn for; for further ones, that for the last is repeated.
    """

    def __init__(self, runs: InnerRuns, generator: torch.Generator, splits: Sequence[Split], steps: int) -> None:
        self.task, self.pairs = runs.task, runs.count // runs.copies
        self.generator, self.splits, self.left = generator, splits, steps
        self.drawn: dict[Split, Batch] = {}  # at the last call that drew anything

    def __call__(self, steps: int) -> dict[Split, Batch]:
        """What :meth:`Task.draw` draws for the next ``steps`` steps: axes ``(steps, P)`` in front."""
        new = min(steps, self.left)
        self.left -= new
        pieces = [self._drawn(new)] if new else []
        self.drawn = pieces[0] if new else self.drawn
        if new < steps:
            last = {split: {name: value[-1:] for name, value in own.items()} for split, own in self.drawn.items()}
            pieces += [last] * (steps - new)
        found: dict[Split, Batch] = _cat(pieces)
        return found

    def _drawn(self, steps: int) -> dict[Split, Batch]:
        if len(self.splits) == 1 and self.task.draws_numbers:
            split = self.splits[0]
            return {split: self.task.draw(self.generator, steps, self.pairs, split=split)}
        ones = [self._one() for _ in range(steps)]
        return {
            split: {name: torch.stack([one[split][name] for one in ones]) for name in own}
            for split, own in ones[0].items()
        }

    def _one(self) -> dict[Split, Batch]:
        return {split: self.task.draw(self.generator, self.pairs, split=split) for split in self.splits}


def make_steps(
    advance: Advance, rule: UpdateRule, theta: Theta, many: Sequence[InnerRuns], draws: Sequence[Draws], steps: int
) -> Made:
    """Steps of all runs, one after the other.

    Args:
        many: inner runs that go :func:`together`, N with all their copies.
        draws: of each.
        steps: how many.

    Returns:
        what has become of the parameters and the state of each, and losses of all, shape ``(steps, N)``.
    """
    params, state = joined(many)
    device = next(iter(params.values())).device
    step, total = positions(many, device)
    losses: list[dict[Split, Tensor]] = []
    for number in range(many[0].step, many[0].step + steps):
        batches = batches_of(many, [own(1) for own in draws], device)
        one = {split: {name: value[0] for name, value in batch.items()} for split, batch in batches.items()}
        params, state, loss = advance(rule, many[0].task, theta, params, state, one, step, total, rule.phase_of(number))
        step = step + 1
        losses.append(loss)
    return parted(many, params, state), {split: torch.stack([loss[split] for loss in losses]) for split in losses[0]}


def together(rule: UpdateRule, many: Sequence[InnerRuns]) -> bool:
    """Whether these inner runs can be advanced as one: tasks compute the same, shapes are equal, steps are alike."""
    first = many[0]
    return len(many) == 1 or (
        rule.period == 1
        and first.task.computation is not None
        and all(
            runs.task.computation == first.task.computation
            and runs.copies == first.copies
            and {name: value.shape for name, value in runs.params.items()}
            == {name: value.shape for name, value in first.params.items()}
            for runs in many
        )
    )


def joined(many: Sequence[InnerRuns]) -> tuple[Params, State]:
    """Parameters and states, one after the other along their leading axis."""
    found: tuple[Params, State] = _cat([(runs.params, runs.state) for runs in many])
    return found


def parted(many: Sequence[InnerRuns], params: Params, state: State) -> list[tuple[Params, State]]:
    """What :func:`joined` put one after the other, taken apart: views."""
    if len(many) == 1:
        return [(params, state)]
    leaves, structure = tree_flatten((params, state))
    parts = zip(*(torch.split(leaf, [runs.count for runs in many]) for leaf in leaves), strict=True)
    return [tree_unflatten(list(part), structure) for part in parts]


def positions(many: Sequence[InnerRuns], device: torch.device) -> tuple[Tensor, Tensor]:
    """Step and horizon: 0-dim for one, a number for each run, shape ``(N,)``, for several."""
    if len(many) == 1:  # unlike with torch.tensor, there is no copy to wait for
        step, total = many[0].step, many[0].horizon
        return torch.full((), float(step), device=device), torch.full((), float(total), device=device)
    rows = sent(torch.tensor([[float(runs.step), float(runs.horizon)] for runs in many]), device)
    steps, totals = rows.repeat_interleave(many[0].count, 0).unbind(1)
    return steps.contiguous(), totals.contiguous()


def _cat(trees: Sequence[Any]) -> Any:
    return trees[0] if len(trees) == 1 else tree_map(lambda *values: torch.cat(values), *trees)


def batches_of(
    many: Sequence[InnerRuns], drawn: Sequence[dict[Split, Batch]], device: torch.device
) -> dict[Split, Batch]:
    """The mini-batches of what :class:`Draws` of each drew, on ``device``: axes ``(steps, N)`` in front."""
    found: dict[Split, dict[str, list[Tensor]]] = {}
    for runs, own in zip(many, drawn, strict=True):
        for split, draw in own.items():
            there = {name: sent(value, device) for name, value in draw.items()}
            for name, value in runs.task.look_up(there, split).items():
                found.setdefault(split, {}).setdefault(name, []).extend([value] * runs.copies)
    return {
        split: {name: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for name, parts in batch.items()}
        for split, batch in found.items()
    }


def unroll(
    rule: UpdateRule,
    particles: Theta,
    runs: InnerRuns,
    steps: int,
    draws: torch.Generator,
    splits: Sequence[Split] = ("train",),
    advance: Advance = advance_runs,
) -> tuple[InnerRuns, Tensor]:
    """Advance all runs by ``steps``, particle ``i`` with ``particles[...][i]`` as θ.

    Args:
        rule: the rule; its own parameters are replaced by ``particles``.
        particles: θ for each run, leading axis ``copies x P``, for the names that are perturbed;
            others are the rule's own.
        runs: where to go on.
        steps: inner steps to make; fewer are made where the horizon comes first.
        draws: where the mini-batches come from, P at a time, each shown to all copies.
        splits: of what to measure the loss: the batches that are trained on, fresh ones held out, or both.
        advance: how one step of all runs is computed.

    Returns:
        the runs after it, and losses before each step, shape ``(splits, steps made, copies x P)``.
    """
    return unroll_together(rule, particles, [runs], steps, [draws], splits, advance)[0]


def unroll_together(
    rule: UpdateRule,
    particles: Theta,
    many: Sequence[InnerRuns],
    steps: int,
    draws: Sequence[torch.Generator],
    splits: Sequence[Split] = ("train",),
    advance: Advance = advance_runs,
) -> list[tuple[InnerRuns, Tensor]]:
    """:func:`unroll` of inner runs that go :func:`together`, each with ``draws`` of its own, as one.

    θ of all of them comes in ``particles``, one after the other. Runs whose horizon comes first wait for the others.
    """
    made = [min(steps, runs.horizon - runs.step) for runs in many]
    wanted: tuple[Split, ...] = ("train", "valid") if "valid" in splits else ("train",)
    own = [Draws(runs, one, wanted, count) for runs, one, count in zip(many, draws, made, strict=True)]
    make: Callable[..., Made] = getattr(advance, "make_steps", None) or partial(make_steps, advance)
    moved, losses = make(rule, particles, many, own, max(made))
    measured = torch.split(torch.stack([losses[split] for split in splits]), [runs.count for runs in many], dim=2)
    return [
        (replace(runs, params=params, state=state, step=runs.step + count), loss[:, :count])
        for runs, count, (params, state), loss in zip(many, made, moved, measured, strict=True)
    ]
