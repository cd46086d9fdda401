"""The assessment of a module: cost, pilots, other batch sizes, coverage, verdict."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_lopt.evaluation.assess.assessment import Assessment
from lightning_lopt.evaluation.assess.batches import ReadBatches, ReadBatchesOfBothSplits, examples_in, regrouped
from lightning_lopt.evaluation.assess.budget import budget_seconds
from lightning_lopt.evaluation.assess.costs import StepCost, step_cost
from lightning_lopt.evaluation.assess.coverage import gaps, meta_training_of, unrecorded
from lightning_lopt.evaluation.assess.ladder import SWEEP, climb
from lightning_lopt.evaluation.assess.outlook import outlook
from lightning_lopt.evaluation.assess.passes import with_planned_passes
from lightning_lopt.evaluation.assess.reading import Reader, generators_restored, readers
from lightning_lopt.evaluation.assess.stability import FACTORS, nobody_learns, troubles, with_other_batches
from lightning_lopt.evaluation.assess.task import MEASURED, PilotTask
from lightning_lopt.evaluation.assess.verdict import judge
from lightning_lopt.io import load_rule
from lightning_lopt.optim.configured import optimizers_in
from lightning_lopt.optim.inputs import checked_horizon
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.seeded_random import isolated

Module = L.LightningModule
FIRST = 3  # batches that are read before anything is known
MOST = 200  # batches that are read at all
FOR_COST, FOR_READING = 0.1, 0.2  # of the budget
UNTIL_LADDER, UNTIL_PASSES, UNTIL_BATCHES = 0.65, 0.87, 0.98  # likewise, counted from the start


def assess(
    model: Module | Callable[[], Module],
    data: Iterable[Any] | L.LightningDataModule | None = None,
    rule: str | os.PathLike[str] | UpdateRule = "base",
    *,
    total_steps: int,
    budget: float | str | None = None,
    valid: Iterable[Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Assessment:
    """Find out before a long training run whether a rule is to be trusted with it.

    Pilots, short complete runs with schedules to zero, compare the rule with AdamW at a swept and at the default
    learning rate, with three seeds each; the longest one is repeated with half and twice the batch size. Their trend
    over growing horizons is followed to ``total_steps``, with an uncertainty. Besides: what a step costs in time and
    memory, and what of this meta-training covered. Model, data and global random state are left as they are.

    Args:
        model: a module with automatic optimization and one optimizer, where pilots start from its present parameters;
            or a function without arguments that builds one (a class), called for each seed.
        data: a data module or batches of training; ``None`` for the module's own dataloaders.
        rule: what :class:`~lightning_lopt.LearnedOptimizer` takes.
        total_steps: optimizer steps of the planned run.
        budget: seconds all of this may take, or a text such as ``"5min"``, ``"10%"`` or ``"400steps"`` of the planned
            run; ``None`` for 5 % of it.
        valid: validation batches, where ``data`` is no data module; ``training_step`` gives their loss too.
        tell: is given a line when something has been done.

    Raises:
        ValueError: with one sentence, for a module, data, a rule or a number that cannot be used.

    Example::

        print(assess(Model(), DataModule(), total_steps=20_000))
    """
    began = time.perf_counter()
    steps = checked_horizon(total_steps)
    if steps is None:
        raise ValueError("total_steps is None; give the number of optimizer steps of the planned run.")
    meta_training = meta_training_of(rule)
    used = copy.deepcopy(rule) if isinstance(rule, UpdateRule) else load_rule(rule)
    name = rule.rule_name if isinstance(rule, UpdateRule) else str(rule)
    with _untouched():
        return _assess(model, data, valid, used, name, meta_training, steps, budget, began, tell)


def _assess(
    model: Module | Callable[[], Module],
    data: Any,
    valid: Any,
    rule: UpdateRule,
    name: str,
    meta_training: dict[str, Any],
    total_steps: int,
    budget: float | str | None,
    began: float,
    tell: Callable[[str], None],
) -> Assessment:
    module = model if isinstance(model, Module) else model()
    if not isinstance(module, Module):
        raise ValueError(
            f"model gave a {type(module).__name__}; give a LightningModule, or a function that builds one."
        )
    _check_optimizers(module)
    device = next(iter(module.parameters()), torch.zeros(())).device
    rule.to(device)
    notes: list[str] = []
    train, held_out = readers(module, data, valid)
    with generators_restored(train, held_out):
        train.take(FIRST)
        if not train.batches:
            raise ValueError(f"{type(module).__name__}: there is no training batch; give at least one.")
        first = [move_data_to_device(batch, device) for batch in train.batches]
        data_seconds = train.seconds_per_batch

        def allowed(step: float) -> float:
            return budget_seconds(budget, data_seconds + step, total_steps)[0]

        cost = step_cost(module, first, rule, total_steps, lambda step: FOR_COST * allowed(step))
        step = data_seconds + cost.gradient + cost.adamw
        seconds, allowance = budget_seconds(budget, step, total_steps)
        tell(f"a training step with AdamW takes {1000 * step:.2f} ms; {seconds:.1f} s for this")
        until = began + FOR_READING * seconds
        train.take(min(MOST, total_steps), until - (0 if held_out is None else 0.1 * seconds))
        if held_out is not None:
            held_out.take(MEASURED, until)
    size = examples_in(train.batches[0])
    batches = [move_data_to_device(batch, device) for batch in train.batches]
    tasks = _Tasks(model, batches, _held_out_batches(held_out, size, device, notes), size, notes)
    levels = []
    if time.perf_counter() < began + UNTIL_LADDER * seconds:
        task = tasks.make(1.0)
        if task.reason:
            notes.append(f"runs go one by one: {task.reason}")
        tell(f"{len(batches)} batches read, {task.name} is ready")
        levels = climb(
            rule,
            task,
            total_steps=total_steps,
            seconds_per_step=cost.gradient + (cost.learned + len(SWEEP) * cost.adamw) / (1 + len(SWEEP)),
            until=began + UNTIL_LADDER * seconds,
            at_most=began + UNTIL_PASSES * seconds,
            tell=tell,
        )
    others = []
    matched = None
    if levels:
        matched = with_planned_passes(
            rule,
            task,
            levels,
            total_steps=total_steps,
            length=train.length,
            until=began + UNTIL_PASSES * seconds,
            at_most=began + UNTIL_BATCHES * seconds,
        )
        if matched is not None:
            tell(f"pilots of {matched.horizon} steps with as many passes over their data: {matched.seconds:.1f} s")
        makers = [(f, int(size * f), lambda f=f: tasks.make(f)) for f in FACTORS if size and tasks.possible(f)]
        if len(makers) < len(FACTORS):
            notes.append("not all other batch sizes could be tried: batches are too few or no stacks of examples")
        others = with_other_batches(rule, makers, levels, began + UNTIL_BATCHES * seconds)
        tell(f"{len(others)} other batch sizes tried")
    missing = gaps(module, meta_training, total_steps=total_steps, batch_size=size, parameters=cost.parameters)
    unknown = unrecorded(meta_training)
    if unknown:
        notes.append(f"the rule does not record of its meta-training: {', '.join(unknown)}")
    splits = list(levels[0].rule) if levels else []
    views = {
        which: {
            s: outlook(levels, s, total_steps, gaps=len(missing), default=which == "default", matched=matched)
            for s in splits
        }
        for which in ("tuned", "default")
    }
    slowdown = cost.slowdown(data_seconds)
    verdict, reasons = judge(
        views["tuned"],
        views["default"],
        troubles=troubles(levels, others),
        hopeless=bool(levels) and nobody_learns(levels),
        gaps=missing,
        slowdown=slowdown,
        planned_seconds=step * total_steps,
    )
    numbers = {
        "module": type(module).__name__,
        "rule": name,
        "parameters": cost.parameters,
        "batch_size": size,
        "total_steps": total_steps,
        "batches_read": len(batches),
        "cost": _cost_json(cost, data_seconds, slowdown),
        "pilots": [level.to_json() for level in levels],
        "planned_passes": None if matched is None else matched.to_json(),
        "other_batches": [other.to_json() for other in others],
        "outlook": {which: {s: vars(view) for s, view in found.items()} for which, found in views.items()},
        "gaps": missing,
        "notes": notes,
        "seconds": {
            "planned": step * total_steps,
            "budget": seconds,
            "allowance": allowance,
            "taken": time.perf_counter() - began,
        },
    }
    return Assessment(verdict, reasons, numbers)


class _Tasks:
    """The module as a task with the planned batches or with larger or smaller ones."""

    def __init__(
        self,
        model: Module | Callable[[], Module],
        train: list[Any],
        valid: list[Any],
        size: int | None,
        notes: list[str],
    ) -> None:
        self.model, self.train, self.valid, self.size, self.notes = model, train, valid, size, notes

    def possible(self, factor: float) -> bool:
        return self._regrouped(factor) is not None

    def make(self, factor: float) -> PilotTask:
        train = self._regrouped(factor)
        assert train is not None
        try:
            if self.valid:
                return PilotTask(self.model, ReadBatchesOfBothSplits(train, self.valid), max_batches=len(train))
        except ValueError as error:
            if "validation batches" not in str(error) and "valid batches" not in str(error):
                raise
            self.notes.append(f"no validation loss: {error}")
            self.valid = []
        return PilotTask(self.model, ReadBatches(train), max_batches=len(train))

    def _regrouped(self, factor: float) -> list[Any] | None:
        if factor == 1:
            return self.train
        wanted = int((self.size or 0) * factor)
        return regrouped(self.train, wanted) if wanted else None


def _held_out_batches(reader: Reader | None, size: int | None, device: torch.device, notes: list[str]) -> list[Any]:
    """At most ``MEASURED`` validation batches, of the training batches' size where that can be had."""
    if reader is None or not reader.batches:
        notes.append("no validation loss: " + ("there is no validation data" if reader is None else "none was read"))
        return []
    same = regrouped(reader.batches, size) if size else None
    return [move_data_to_device(batch, device) for batch in (same or reader.batches)[:MEASURED]]


def _check_optimizers(module: Module) -> None:
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, where its own training_step makes the steps; assess "
            "needs automatic optimization with one optimizer."
        )
    try:
        configured = copy.deepcopy(module).configure_optimizers()
    except Exception:  # it may need a Trainer, and what it would return is not needed
        return
    count = len(optimizers_in(configured))
    if count > 1:
        raise ValueError(
            f"{type(module).__name__}.configure_optimizers returns {count} optimizers; assess compares one rule with "
            "one AdamW, so give it a module with one."
        )


@contextmanager
def _untouched() -> Iterator[None]:
    """Global random states of torch on all devices, NumPy and Python are put back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), isolated(0), torch.enable_grad():
        yield


def _cost_json(cost: StepCost, data_seconds: float, slowdown: float) -> dict[str, float]:
    whole = data_seconds + cost.gradient + cost.learned
    return {
        "data": data_seconds,
        "gradient": cost.gradient,
        "learned": cost.learned,
        "adamw": cost.adamw,
        "share": cost.learned / whole,
        "slowdown": slowdown,
        "learned_bytes": cost.learned_bytes,
        "adamw_bytes": cost.adamw_bytes,
    }
