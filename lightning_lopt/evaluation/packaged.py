"""Optimizers of other packages as baselines; stored results can be used without the package."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.torch_optimizers import TorchModels, switch
from lightning_lopt.extras import how_to_install
from lightning_lopt.tasks.base import Task


@dataclass(frozen=True)
class PackagedOptimizer:
    """An optimizer class of another package, with its settings.

    Attributes:
        package: name of the package, to install and to import.
        version: version for the results that ``lightning_lopt`` contains; the extra ``peers`` has the same version.
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
        """``None`` where the package is not installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    @property
    def full_name(self) -> str:
        """Package, version and class; without the package, the version of the stored results."""
        return f"{self.package} {self.installed_version or self.version} {self.name}"

    def require(self) -> None:
        """Check that the package is installed.

        Raises:
            ImportError: if it is not.
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
        made = getattr(importlib.import_module(self.package), self.name)(params, lr=self.lr, **options)
        assert isinstance(made, torch.optim.Optimizer)
        switch([made], "train")
        return made


def packaged_models(
    optimizers: Sequence[PackagedOptimizer],
    task: Task,
    horizon: int,
    *,
    seeds: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TorchModels:
    """Models of optimizers of other packages that have the same schedule.

    Raises:
        ImportError: if a package is not installed.
    """
    builds = [partial(optimizer.build, horizon=horizon) for optimizer in optimizers]
    schedule = optimizers[0].schedule
    return TorchModels(builds, task, horizon, seeds=seeds, seed=seed, schedule=schedule, device=device)
