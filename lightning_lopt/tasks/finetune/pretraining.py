"""Pretraining: AdamW trains parameters on one task, and another task starts from these parameters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from lightning_lopt.checks import check_positive
from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Batch, Task

WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.01

_PRETRAINED: dict[str, Params] = {}  # cache of this process; keys are hashes of pretrainings


@dataclass(frozen=True, eq=False)
class Pretraining:
    """A pretraining: ``steps`` steps of AdamW on ``task``, with warm-up and linear decay of the learning rate.

    Attributes:
        task: the task of the pretraining.
        steps: training steps, >= 0; with 0 steps, the parameters are the initial parameters.
        lr: largest learning rate, > 0.
        seed: seed of the initial parameters and of the mini-batches.

    Raises:
        ValueError: if ``steps`` or ``lr`` lies outside its range.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> pretraining = Pretraining(Quadratic(torch.tensor([1.0, 4.0])), steps=50, lr=0.1)
        >>> {name: tuple(value.shape) for name, value in pretraining.params().items()}
        {'x': (2,)}
    """

    task: Task
    steps: int = 400
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 0:
            raise ValueError(f"steps must be an integer >= 0, got {self.steps!r}.")
        check_positive(lr=self.lr)

    def params(self) -> Params:
        """The parameters after the last step, float32; computed at the first call in a process, then cached.

        The steps are computed in double precision on the CPU, so that all machines get the same float32 numbers except
        for their last digits, although AdamW enlarges rounding errors.
        """
        key = self.key()
        if key not in _PRETRAINED:
            _PRETRAINED[key] = self._train()
        return {name: value.clone() for name, value in _PRETRAINED[key].items()}

    def key(self) -> str:
        """A hash of everything on which the result depends: settings, data, and the first gradient of the network."""
        batch = _in_double(self.task.batch(generator(self.seed, "pretraining")))
        params = self._initial()
        content = hashlib.sha256(repr((self.steps, self.lr, self.seed, self.task.roles)).encode())
        for values in (params, self.task.full_batch("train"), grad(self.task.loss)(params, batch)):
            for name, value in values.items():
                content.update(f"{name} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        return content.hexdigest()

    def _initial(self) -> Params:
        initial_params = self.task.init(generator(self.seed, "pretraining", "init"))
        return {name: value.double() for name, value in initial_params.items()}

    def _train(self) -> Params:
        params = {name: value.requires_grad_() for name, value in self._initial().items()}
        draws = generator(self.seed, "pretraining")
        optimizer = torch.optim.AdamW(params.values(), self.lr, weight_decay=WEIGHT_DECAY)
        warm_up = max(round(WARM_UP * self.steps), 1)
        for step in range(self.steps):
            remaining = (self.steps - step) / max(self.steps - warm_up, 1)
            optimizer.param_groups[0]["lr"] = self.lr * min((step + 1) / warm_up, remaining)
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = self.task.loss(params, _in_double(self.task.batch(draws)))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: value.detach().float() for name, value in params.items()}


def _in_double(batch: Batch) -> Batch:
    """A batch with its floating point entries in double precision."""

    def convert(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    return {name: convert(value) for name, value in batch.items()}
