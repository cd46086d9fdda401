"""A user's LightningModule and its data as a task, for meta-training on the model that the rule will train."""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from lightning_lopt._lightning import is_lightning
from lightning_lopt.checks import check_sizes
from lightning_lopt.rules.base import Params
from lightning_lopt.rules.contract.roles import roles_of
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import integer
from lightning_lopt.tasks.base import AUXILIARY_PREFIX, Batch, MissingSplitError, Split, Task
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_module import TrainingStep
from lightning_lopt.tasks.loader_reading import first_batches
from lightning_lopt.tasks.looped import looped
from lightning_lopt.tasks.seeded_random import SeededRandom, isolated
from lightning_lopt.tasks.stand_in import Fit
from lightning_lopt.tasks.users_code import UsersCodeError, named, users_code

if TYPE_CHECKING:
    import lightning.pytorch as L

_log = logging.getLogger(__name__)
_SEED = f"{AUXILIARY_PREFIX}seed"
_ALL = f"{AUXILIARY_PREFIX}all/"


class LightningTask(Task):
    """The ``training_step`` of a LightningModule on batches of its data; see :class:`~.lightning_module.TrainingStep`.

    Mini-batches are drawn with replacement from the first ``max_batches`` batches of one pass over the dataloader.
    Dropout and other random functions of torch use a seed in the mini-batch: both particles of a pair have the same
    masks, and the next step has new masks. :meth:`full_batch` contains all batches; its loss is their mean loss without
    dropout.

    A test with two inner runs decides whether ``vmap`` is used. If ``vmap`` fails or gives other numbers than a loop
    (because of ``.item()``, a branch on a value, writing into buffers, or random numbers of NumPy), losses and
    gradients are computed one run after the other. The steps of the rule are vmapped in both cases.

    Args:
        module: a module, whose present parameters are the start of every inner run; or a function without arguments
            that builds a module, called for each inner run with another seed.
        train: batches (a dataloader, a list), or a ``LightningDataModule``; :class:`StackedBatches` are used without
            the hooks around the transfer to a device.
        valid: the same for the ``"valid"`` split, with batches of the same structure; by default the batches of the
            validation dataloader of the data module, if there is one.
        max_batches: largest number of batches of each split in memory, >= 1.
        loss_scale: see :class:`~lightning_lopt.tasks.Task`; ``None`` for the mean loss of the initial parameters.
        name: name of the task.
        fit: values that ``self.trainer`` returns, see :class:`~.lightning_module.TrainingStep`.

    Attributes:
        vmapped: whether ``vmap`` is used for losses and gradients.
        reason: why ``vmap`` is not used, in words; empty if it is used.
        uses_metrics: whether metrics of torchmetrics are computed, since the loss needs them.

    Raises:
        ValueError: with one sentence, for a module or batches that cannot be used.

    Example:
        >>> import lightning.pytorch as L
        >>> class Model(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         return nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        >>> batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(4)]
        >>> task = LightningTask(Model, batches, loss_scale=1.0)
        >>> task.roles, task.vmapped
        ({'layer.weight': 'matrix', 'layer.bias': 'vector'}, True)
    """

    def __init__(
        self,
        module: L.LightningModule | Callable[[], L.LightningModule],
        train: Iterable[Any] | L.LightningDataModule | StackedBatches,
        valid: Iterable[Any] | StackedBatches | None = None,
        *,
        max_batches: int = 100,
        loss_scale: float | None = None,
        name: str | None = None,
        fit: Fit | None = None,
    ) -> None:
        check_sizes(max_batches=max_batches)
        self._build: Any = None if is_lightning(module, "LightningModule") else module
        first_module = module if self._build is None else self._build_module(0)
        self._step = TrainingStep(first_module, fit)
        kind = self._step.kind
        roles = roles_of(self._step.module)
        self.roles = {key: roles[key] for key in self._step.trained}
        self.data = self._read(train, valid, max_batches)
        self.batch_size = self.data["train"].batch_size
        self.steps_per_epoch = len(self.data["train"])
        params = self._step.params()
        count = sum(value.numel() for value in params.values())
        self.name = name if name is not None else f"lightning/{kind}/p{count}"
        # whether the step draws random numbers, and whether some of them come from global state
        self.random = self.uses_global_random = False
        self.vmapped = True
        scale = self._initial_loss(params)
        self.loss_scale = scale if loss_scale is None else loss_scale
        self.reason = self._why_looped(params)
        self.vmapped = not self.reason
        _log.info("%s: inner runs go %s", self.name, f"one by one: {self.reason}" if self.reason else "side by side")
        self.config = {
            "family": "lightning",
            "module": kind,
            "parameters": count,
            "batches": {split: len(batches) for split, batches in self.data.items()},
            "batch_size": self.batch_size,
            "vmapped": self.vmapped,
        }

    def init(self, generator: torch.Generator) -> Params:
        if self._build is None:
            return self._step.params()
        seed = integer(0, 2**62, generator)
        built_module = self._build_module(seed)
        if self._step.built_late:
            with isolated(seed):
                return TrainingStep(built_module, self._step.fit).params()
        values = dict(built_module.named_parameters())
        return {name: values[name].detach().clone() for name in self.roles}

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        data = self._data(split)
        batch = data.take(torch.randint(len(data), lead, generator=generator))
        return batch | {_SEED: torch.randint(2**62, lead, generator=generator)} if self.random else batch

    def nth(self, index: int, seed: int | None, split: Split = "train") -> Batch:
        """The batch with this number; ``seed`` is the seed of its dropout, ``None`` for no dropout."""
        batch = self._data(split).take(torch.tensor(index))
        return batch | {_SEED: torch.tensor(seed)} if self.random and seed is not None else batch

    def full_batch(self, split: Split) -> Batch:
        return {_ALL + name: value for name, value in self._data(split).tensors.items()}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self._loss(params, batch) if self.vmapped else looped(self._loss, params, batch)

    def _loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss as ordinary operations, which ``vmap`` can transform."""
        stacked = {name.removeprefix(_ALL): value for name, value in batch.items() if name.startswith(_ALL)}
        if stacked:
            count = len(next(iter(stacked.values())))
            single_batches = ({name: value[index] for name, value in stacked.items()} for index in range(count))
            return torch.stack([self._loss(params, batch_entries) for batch_entries in single_batches]).mean()
        tree = self.data["train"].tree(batch)
        if not self.random:
            return self._step.loss(params, tree)
        seed = batch.get(_SEED)
        # functions that SeededRandom does not replace draw from global state, which only a loop can seed
        global_random = isolated(0 if seed is None else int(seed)) if self.uses_global_random else nullcontext()
        with SeededRandom(seed), global_random:
            return self._step.loss(params, tree)

    def _data(self, split: Split) -> StackedBatches:
        if split not in self.data:
            raise MissingSplitError(f"{self.name} has no {split} batches; pass LightningTask(..., valid=dataloader).")
        return self.data[split]

    def _read(self, train: Any, valid: Any, limit: int) -> dict[Split, StackedBatches]:
        """The batches of both splits, after a check that they have the same structure."""
        data: dict[Split, StackedBatches] = {}
        kind = self._step.kind
        if valid is None and is_lightning(train, "LightningDataModule"):
            valid = train
        sources: dict[Split, Any] = {"train": train, "valid": valid}
        for split, source in sources.items():
            if isinstance(source, StackedBatches):
                data[split] = source
                continue
            batches = None if source is None else first_batches(source, split, self._step.module, limit)
            if batches is not None:
                data[split] = StackedBatches(batches, f"{kind}, {split} batches")
        if "train" not in data:
            raise ValueError(f"{type(train).__name__} has no train_dataloader; write one, or give batches.")
        if "valid" in data and data["valid"].structure != data["train"].structure:
            raise ValueError(
                f"{kind}: validation batches hold {data['valid'].names}, training batches hold {data['train'].names}; "
                "give both the same structure."
            )
        return data

    def _build_module(self, seed: int) -> Any:
        assert self._build is not None
        with isolated(seed), users_code(getattr(self._build, "__name__", "building the model")):
            return self._build()

    def _initial_loss(self, params: Params) -> float:
        """The mean loss of the first batches; also records whether the step draws random numbers."""
        losses = self._first_losses(params)
        self.uses_metrics = False
        if not (losses.requires_grad and losses.isfinite().all()) and self._step.use_metrics():
            self.uses_metrics = True  # a metric is the loss, or a part of it
            losses = self._first_losses(params)
        if not losses.requires_grad:
            raise ValueError(f"{self._step.kind}: the loss does not depend on the parameters; do not detach it.")
        mean = float(losses.detach().mean().abs())
        if not mean < float("inf"):
            raise ValueError(
                f"{self._step.kind}.training_step gives a loss of {mean} at the start; check the data and the model."
            )
        return mean or 1.0

    def _first_losses(self, params: Params) -> Tensor:
        data = self.data["train"]
        losses = []
        for index in range(min(4, len(data))):
            leaves = {name: value.requires_grad_() for name, value in params.items()}
            draws = SeededRandom(torch.tensor(index))
            with isolated(index), draws:
                state_before = _global_state()
                batch = data.tree(data.take(torch.tensor(index)))
                try:
                    output = self._step.output(leaves, batch)
                except Exception as error:
                    raise ValueError(self._failure(error)) from error
                self.uses_global_random |= _global_state() != state_before
                self.random |= self.uses_global_random or draws.calls > 0
                losses.append(self._step.loss_in(output))
        return torch.stack(losses)

    def _failure(self, error: Exception) -> str:
        text = f"{self._step.kind}.training_step fails outside a Trainer ({named(_cause(error))})"
        if self._step.setup_error:
            text += f"; before that its setup failed ({self._step.setup_error})"
        return f"{text}; let it use only the batch and the module."

    def _why_looped(self, params: Params) -> str:
        """Why ``vmap`` cannot be used, empty if it can, by a test with two runs of slightly different parameters."""
        if self.uses_global_random:
            return "training_step draws random numbers that vmap cannot draw for each run"
        draws = derived_generator(0, "probe")
        pair = {name: torch.stack([value.detach(), value.detach() * 1.01]) for name, value in params.items()}
        batch = self.batch(draws, 2)
        try:
            with torch.no_grad():
                grads, losses = vmap(grad_and_value(self._loss))(pair, batch)
                measured_losses = vmap(self._loss)(pair, batch)  # without a gradient, other kernels may be used
        except Exception as error:
            cause = _cause(error)
            text = " ".join(str(cause).split())[:160]
            return f"vmap of training_step fails{_place(cause)} ({type(cause).__name__}: {text}...)"
        for index in range(2):
            params_of_run = {name: value[index] for name, value in pair.items()}
            batch_of_run = {name: value[index] for name, value in batch.items()}
            expected, loss = grad_and_value(self._loss)(params_of_run, batch_of_run)
            differing = [name for name, value in expected.items() if not _is_close(grads[name][index], value)]
            if differing or not (_is_close(losses[index], loss) and _is_close(measured_losses[index], loss)):
                return (
                    f"vmap of training_step gives other values than a loop (for {', '.join(differing) or 'the loss'})"
                )
        return ""


def _is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6)


def _cause(error: BaseException) -> BaseException:
    """The error of the user's code."""
    return error.__cause__ or error if isinstance(error, UsersCodeError) else error


def _place(error: BaseException) -> str:
    """The position of the last line of the user's code in the traceback of the error."""
    library_folders = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(library_folders)
    ]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _global_state() -> tuple[bytes, bytes, object]:
    """Global random states, which change when a random number is drawn from them."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        numpy_state[1].tobytes() + bytes([numpy_state[2] % 256]),
        random.getstate(),
    )
