"""Runs of optimizers with the interface of ``torch.optim``, of any package, on a problem.

Stored results of optimizers of other packages can be used without these packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from lightning_lopt.evaluation.measurement import Measurement, Problem, measured_in_windows
from lightning_lopt.extras import how_to_install
from lightning_lopt.meta.rule_models import PerModel
from lightning_lopt.rules.base import StepContext
from lightning_lopt.rules.shared.schedules import schedule_factor
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Batch, Split, Task

BuildTorchOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
"""A function that makes a new optimizer of the parameters of one model."""


def run_optimizers(
    builds: Sequence[BuildTorchOptimizer],
    problem: Problem,
    *,
    seeds: int,
    seed: int = 0,
    schedule: str = "constant",
    device: torch.device | str = "cpu",
) -> list[Measurement]:
    """Train ``seeds`` models with each of several optimizers; each model has a separate optimizer.

    Initial models and mini-batches are the same as in :func:`~lightning_lopt.evaluation.measurement.run_rules`.

    Args:
        builds: functions that make an optimizer.
        problem: the problem.
        seeds: number of models for each optimizer, >= 1.
        seed: seed of models and mini-batches.
        schedule: factor on all learning rates over the horizon, ``"constant"`` or ``"cosine"`` (to 0).
        device: device of the models.

    Returns:
        one measurement for each optimizer, on the CPU, named ``"0"``, ``"1"``, ...
    """
    task, horizon = problem.task, problem.horizon
    models = TorchModels(builds, task, horizon, seeds=seeds, seed=seed, schedule=schedule, device=device)
    return measured_in_windows(models, task, horizon, copies=len(builds))


class TorchModels:
    """``seeds`` models for each of several optimizers, side by side; each model has a separate optimizer instance.

    Gradients of all models are computed in one batch. A model has diverged if its loss or gradient is not finite: then
    its parameters become NaN, and its optimizer makes no more steps. The models of optimizers with ``train()`` and
    ``eval()`` are measured after ``eval()``.

    Args:
        builds: functions that make an optimizer.
        task: the task.
        horizon: planned steps.
        seeds: models for each optimizer.
        seed: seed of models and mini-batches.
        schedule: schedule of the learning rates.
        device: device of the models.
    """

    def __init__(
        self,
        builds: Sequence[BuildTorchOptimizer],
        task: Task,
        horizon: int,
        *,
        seeds: int,
        seed: int,
        schedule: str = "constant",
        device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.horizon, self.seeds, self.copies, self.schedule = task, horizon, seeds, len(builds), schedule
        inits = [task.init(generator(seed, "init", index)) for index in range(seeds)]
        self.params = {name: torch.stack([init[name] for init in inits] * self.copies).to(device) for name in inits[0]}
        self.draws = generator(seed, "batches")
        self.step = 0
        self.leaves = [  # the leaves are views, so a step changes the stack of parameters
            {name: self.params[name][model] for name in task.roles} for model in range(self.copies * seeds)
        ]
        self.optimizers = [
            build(list(leaves.values()))
            for build, leaves in zip([build for build in builds for _ in range(seeds)], self.leaves, strict=True)
        ]
        self.rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.optimizers]

    def advance(self, steps: int) -> Tensor:
        """Make ``steps`` steps, and return the losses before each step, shape ``(steps, copies x seeds)``."""
        return torch.stack([self._advance_one_step() for _ in range(steps)])

    def _advance_one_step(self) -> Tensor:
        batch = {name: self._on_all(value) for name, value in self.task.batch(self.draws, self.seeds).items()}
        grads, losses, carried = vmap(self.task.gradient)(self.params, batch)
        squares = sum((grad.flatten(1).square().sum(1) for grad in grads.values()), losses)
        context = StepContext(torch.tensor(float(self.step)), torch.tensor(float(self.horizon)))
        factor = float(schedule_factor(self.schedule, context))
        for model, finite in enumerate(squares.isfinite().tolist()):
            self._step_of(model, {name: grad[model] for name, grad in grads.items()}, factor, finite)
        self.params |= carried
        self.step += 1
        return losses.detach()

    def _step_of(self, model: int, grads: Batch, factor: float, finite: bool) -> None:
        optimizer, leaves = self.optimizers[model], self.leaves[model]
        if not finite:
            for leaf in leaves.values():
                leaf.fill_(torch.nan)
            return
        for group, rate in zip(optimizer.param_groups, self.rates[model], strict=True):
            group["lr"] = factor * rate
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        optimizer.step()

    def validated(self, losses: Tensor) -> None:
        """Do nothing: optimizers of PyTorch do not read a validation loss."""

    def on_full_batch(self, split: Split, function: PerModel) -> Batch:
        """``function`` of the parameters of each model and of the whole split, one optimizer at a time."""
        device = next(iter(self.params.values())).device
        full_batch = {name: value.to(device) for name, value in self.task.full_batch(split).items()}
        switch(self.optimizers, "eval")
        parts = [
            vmap(function, in_dims=(0, None))(
                {name: value[copy * self.seeds :][: self.seeds] for name, value in self.params.items()}, full_batch
            )
            for copy in range(self.copies)
        ]
        switch(self.optimizers, "train")
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _on_all(self, value: Tensor) -> Tensor:
        """Mini-batches repeated for all optimizers: the leading axis ``seeds`` becomes ``copies x seeds``."""
        value = value.to(next(iter(self.params.values())).device)
        return torch.cat([value] * self.copies)


def switch(optimizers: Sequence[torch.optim.Optimizer], mode: str) -> None:
    """Call ``train()`` or ``eval()`` of the optimizers that have such a method; it may change the parameters."""
    for optimizer in optimizers:
        getattr(optimizer, mode, lambda: None)()


@dataclass(frozen=True)
class PackagedOptimizer:
    """An optimizer class of another package, with its settings.

    Attributes:
        package: name of the package, to install and to import.
        version: version of the results in ``lightning_lopt``; the extra ``peers`` has the same version.
        name: name of the class.
        lr: learning rate.
        options: further arguments of the class.
        schedule: schedule of the learning rate over the horizon, ``"constant"`` or ``"cosine"`` (to 0).
        warmup: share of the horizon for the argument ``warmup_steps``; 0 for a class without that argument.
        period: number of steps after which the work of a step repeats.
    """

    package: str
    version: str
    name: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "constant"
    warmup: float = 0.0
    period: int = 1

    @property
    def config(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {"lr": self.lr, **self.options, "schedule": self.schedule, "warmup": self.warmup}

    @property
    def installed_version(self) -> str | None:
        """The installed version of the package; ``None`` if the package is not installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    @property
    def full_name(self) -> str:
        """Package, version and class; if the package is not installed, the version of the stored results."""
        return f"{self.package} {self.installed_version or self.version} {self.name}"

    def require(self) -> None:
        """Check that the package is installed.

        Raises:
            ImportError: if the package is not installed.
        """
        if self.installed_version is None:
            raise ImportError(
                f"{self.name} comes with the package {self.package}, which is not installed; {how_to_install('peers')}."
            )

    def build(self, params: list[Tensor], horizon: int) -> torch.optim.Optimizer:
        """A new optimizer of ``params`` for a run of ``horizon`` steps, in the mode for training.

        Raises:
            ImportError: if the package is not installed.
        """
        self.require()
        options = dict(self.options)
        if self.warmup:
            options["warmup_steps"] = round(self.warmup * horizon)
        optimizer = getattr(importlib.import_module(self.package), self.name)(params, lr=self.lr, **options)
        assert isinstance(optimizer, torch.optim.Optimizer)
        switch([optimizer], "train")
        return optimizer


def packaged_models(
    optimizers: Sequence[PackagedOptimizer],
    task: Task,
    horizon: int,
    *,
    seeds: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TorchModels:
    """Models of several optimizers of other packages; all optimizers have the same schedule.

    Raises:
        ImportError: if a package is not installed.
    """
    builds = [partial(optimizer.build, horizon=horizon) for optimizer in optimizers]
    schedule = optimizers[0].schedule
    return TorchModels(builds, task, horizon, seeds=seeds, seed=seed, schedule=schedule, device=device)
