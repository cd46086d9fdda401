"""The unroll engine: many inner runs of one task, each with its own θ, side by side under ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, vmap

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
        noise_sum: perturbations of θ added up since the runs began, leading axis ``P`` (for PES, which derives them
            from ``seed`` again where this is ``None``, as after a checkpoint).
    """

    task: Task
    params: Params
    state: State
    step: int
    horizon: int
    seed: int
    copies: int = 2
    truncations: int = 0
    noise_sum: Theta | None = None

    @property
    def finished(self) -> bool:
        return self.step >= self.horizon


def start_runs(rule: UpdateRule, task: Task, *, pairs: int, horizon: int, seed: int, copies: int = 2) -> InnerRuns:
    """Inner runs before their first step; pair ``p`` is initialised from ``(seed, "init", p)`` alone."""
    inits = [task.init(generator(seed, "init", pair)) for pair in range(pairs)]
    device = device_of(rule)
    params = {name: torch.stack([init[name] for init in inits] * copies).to(device) for name in inits[0]}
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
    full: bool = True,
) -> tuple[Params, State, dict[Split, Tensor]]:
    """One step of one inner run: new parameters, new state, and losses before the step. Pure.

    ``batches["train"]`` is trained on; of others the loss is measured.
    """
    grads, loss, carried = task.gradient(params, batches["train"])
    trained = {name: params[name] for name in grads}
    context = StepContext(step, total_steps, loss, task.roles, full=full)
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
    full: bool = True,
) -> tuple[Params, State, dict[Split, Tensor]]:
    """:func:`inner_step` for all runs side by side: leading axis N on θ, parameters, state, batches, and the losses."""

    def one(theta: Theta, params: Params, state: State, batches: dict[Split, Batch]) -> Stepped:
        return inner_step(rule, theta, task, params, state, batches, step, total_steps, full)

    return vmap(one)(theta, params, state, batches)


Stepped = tuple[Params, State, dict[Split, Tensor]]
Advance = Callable[[UpdateRule, Task, Theta, Params, State, dict[Split, Batch], Tensor, Tensor, bool], Stepped]
"""The signature of :func:`advance_runs`, which something with the same numbers may stand in for.

If it has a method ``make_steps``, that one stands in for :func:`make_steps` too.
"""


def make_steps(
    advance: Advance, rule: UpdateRule, theta: Theta, runs: InnerRuns, drawn: Iterable[dict[Split, Batch]]
) -> Stepped:
    """One step of all runs after the other for as much as was drawn; losses have the shape ``(steps, N)``.

    Args:
        drawn: for each step and split what :meth:`Task.draw` drew, leading axis ``N / copies``, on any device.
    """
    task, params, state = runs.task, runs.params, runs.state
    device = next(iter(params.values())).device
    total = torch.full((), float(runs.horizon), device=device)  # unlike torch.tensor, no copy to wait for
    losses: list[dict[Split, Tensor]] = []
    for number, one in enumerate(drawn, runs.step):
        sent = {split: {name: value.to(device) for name, value in draw.items()} for split, draw in one.items()}
        now = torch.full((), float(number), device=device)
        batches, full = looked_up(task, sent, runs.copies), rule.is_full(number)
        params, state, loss = advance(rule, task, theta, params, state, batches, now, total, full)
        losses.append(loss)
    return params, state, {split: torch.stack([loss[split] for loss in losses]) for split in losses[0]}


def looked_up(task: Task, drawn: dict[Split, Batch], copies: int) -> dict[Split, Batch]:
    """The mini-batches of what was drawn, repeated for the runs that share them."""
    return {split: task.look_up(repeated(draw, copies), split) for split, draw in drawn.items()}


def repeated(drawn: Batch, copies: int) -> Batch:
    """Leading axis ``copies`` times as long."""
    return drawn if copies == 1 else {name: torch.cat([value] * copies) for name, value in drawn.items()}


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
    steps = min(steps, runs.horizon - runs.step)
    pairs = len(next(iter(runs.params.values()))) // runs.copies
    wanted: tuple[Split, ...] = ("train", "valid") if "valid" in splits else ("train",)
    drawn = ({split: runs.task.draw(draws, pairs, split=split) for split in wanted} for _ in range(steps))
    make: Callable[..., Stepped] = getattr(advance, "make_steps", None) or partial(make_steps, advance)
    params, state, losses = make(rule, particles, runs, drawn)
    after = replace(runs, params=params, state=state, step=runs.step + steps)
    return after, torch.stack([losses[split] for split in splits])
