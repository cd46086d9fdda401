"""Anybody's LightningModule and its data as a task, so that rules are meta-trained on what they will be used for."""

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
from lightning_lopt.rules.base import Params
from lightning_lopt.rules.contract.roles import roles_of
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import integer
from lightning_lopt.tasks.base import OWN, Batch, MissingSplitError, Split, Task
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
_SEED = f"{OWN}seed"
_ALL = f"{OWN}all/"


class LightningTask(Task):
    """A LightningModule's own ``training_step`` on its own batches; see :class:`~.lightning_module.TrainingStep`.

    A mini-batch is one of the first ``max_batches`` of the dataloader, as it came out of one pass over it, drawn with
    replacement. Dropout and other randomness of torch follow from a seed in the mini-batch: the same masks for both
    particles of a pair, other masks in the next step. :meth:`full_batch` is all of the batches, one after the other,
    and their mean loss is taken without dropout.

    Whether inner runs go side by side is tried out on two of them: where ``vmap`` fails or gives other numbers than a
    loop (``.item()`` or a branch on a value, writing into buffers, random numbers of NumPy), losses and gradients are
    computed one run after the other, with the same results; the rule stays vmapped.

    Args:
        module: a module, from whose present parameters every inner run starts; or a function without arguments that
            builds one, called for each inner run under a seed of its own.
        train: batches (a dataloader, a list), or a ``LightningDataModule``; those that are stacked already are used
            as they are, without the hooks around the transfer to a device.
        valid: likewise, for the ``"valid"`` split, with batches of the same structure; taken from the data module if
            that has a validation dataloader.
        max_batches: how many batches of each are kept in memory, >= 1.
        loss_scale: see :class:`~lightning_lopt.tasks.Task`; ``None`` for the mean loss at the start.
        name: name of the task.
        fit: what ``self.trainer`` answers, see :class:`~.lightning_module.TrainingStep`.

    Attributes:
        vmapped: whether inner runs go side by side.
        reason: why not, in words; empty if they do.
        uses_metrics: whether metrics of torchmetrics compute, since the loss needs them.

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
        if max_batches < 1:
            raise ValueError(f"max_batches must be at least 1, got {max_batches!r}.")
        self._build: Any = None if is_lightning(module, "LightningModule") else module
        built = module if self._build is None else self._built(0)
        self._step = TrainingStep(built, fit)
        kind = self._step.kind
        roles = roles_of(self._step.module)
        self.roles = {key: roles[key] for key in self._step.trained}
        self.data = self._read(train, valid, max_batches)
        self.batch_size = self.data["train"].batch_size
        params = self._step.params()
        count = sum(value.numel() for value in params.values())
        self.name = name if name is not None else f"lightning/{kind}/p{count}"
        self.random = self.strays = False  # whether the step draws random numbers; and some of them from global state
        self.vmapped = True
        scale = self._try_out(params)
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
        built = self._built(seed)
        if self._step.built_late:
            with isolated(seed):
                return TrainingStep(built, self._step.fit).params()
        values = dict(built.named_parameters())
        return {name: values[name].detach().clone() for name in self.roles}

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        data = self._data(split)
        batch = data.take(torch.randint(len(data), lead, generator=generator))
        return batch | {_SEED: torch.randint(2**62, lead, generator=generator)} if self.random else batch

    def nth(self, index: int, seed: int | None, split: Split = "train") -> Batch:
        """The batch of this number; ``seed`` of its randomness, ``None`` for no dropout."""
        batch = self._data(split).take(torch.tensor(index))
        return batch | {_SEED: torch.tensor(seed)} if self.random and seed is not None else batch

    def full_batch(self, split: Split) -> Batch:
        return {_ALL + name: value for name, value in self._data(split).tensors.items()}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self._loss(params, batch) if self.vmapped else looped(self._loss, params, batch)

    def _loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss by operations that see ``vmap``, if any."""
        stacked = {name.removeprefix(_ALL): value for name, value in batch.items() if name.startswith(_ALL)}
        if stacked:
            count = len(next(iter(stacked.values())))
            one_by_one = ({name: value[index] for name, value in stacked.items()} for index in range(count))
            return torch.stack([self._loss(params, one) for one in one_by_one]).mean()
        tree = self.data["train"].tree(batch)
        if not self.random:
            return self._step.loss(params, tree)
        seed = batch.get(_SEED)
        # what SeededRandom does not know draws from global state, which only a loop can seed
        rest = isolated(0 if seed is None else int(seed)) if self.strays else nullcontext()
        with SeededRandom(seed), rest:
            return self._step.loss(params, tree)

    def _data(self, split: Split) -> StackedBatches:
        if split not in self.data:
            raise MissingSplitError(f"{self.name} has no {split} batches; pass LightningTask(..., valid=dataloader).")
        return self.data[split]

    def _read(self, train: Any, valid: Any, limit: int) -> dict[Split, StackedBatches]:
        """The batches of both splits, checked to be of one structure."""
        data: dict[Split, StackedBatches] = {}
        kind = self._step.kind
        if valid is None and is_lightning(train, "LightningDataModule"):
            valid = train
        sources: dict[Split, Any] = {"train": train, "valid": valid}
        for split, source in sources.items():
            if isinstance(source, StackedBatches):
                data[split] = source
                continue
            found = None if source is None else first_batches(source, split, self._step.module, limit)
            if found is not None:
                data[split] = StackedBatches(found, f"{kind}, {split} batches")
        if "train" not in data:
            raise ValueError(f"{type(train).__name__} has no train_dataloader; write one, or give batches.")
        if "valid" in data and data["valid"].structure != data["train"].structure:
            raise ValueError(
                f"{kind}: validation batches hold {data['valid'].names}, training batches hold {data['train'].names}; "
                "give both the same structure."
            )
        return data

    def _built(self, seed: int) -> Any:
        assert self._build is not None
        with isolated(seed), users_code(getattr(self._build, "__name__", "building the model")):
            return self._build()

    def _try_out(self, params: Params) -> float:
        """The mean loss of a few batches, after noticing which randomness the step uses."""
        losses = self._first_losses(params)
        self.uses_metrics = False
        if not (losses.requires_grad and losses.isfinite().all()) and self._step.use_metrics():
            self.uses_metrics = True  # one of them is the loss, or a part of it
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
                before = _global_state()
                batch = data.tree(data.take(torch.tensor(index)))
                try:
                    output = self._step.output(leaves, batch)
                except Exception as error:
                    raise ValueError(self._failure(error)) from error
                self.strays |= _global_state() != before
                self.random |= self.strays or draws.calls > 0
                losses.append(self._step.loss_in(output))
        return torch.stack(losses)

    def _failure(self, error: Exception) -> str:
        text = f"{self._step.kind}.training_step fails outside a Trainer ({named(_cause(error))})"
        if self._step.setup_error:
            text += f"; before that its setup failed ({self._step.setup_error})"
        return f"{text}; let it use only the batch and the module."

    def _why_looped(self, params: Params) -> str:
        """Why ``vmap`` does not do, empty if it does: judged by two runs, of slightly different parameters."""
        if self.strays:
            return "training_step draws random numbers that vmap cannot draw for each run"
        draws = derived_generator(0, "probe")
        pair = {name: torch.stack([value.detach(), value.detach() * 1.01]) for name, value in params.items()}
        batch = self.batch(draws, 2)
        try:
            with torch.no_grad():
                grads, losses = vmap(grad_and_value(self._loss))(pair, batch)
                measured = vmap(self._loss)(pair, batch)  # other kernels may run where no gradient is wanted
        except Exception as error:
            cause = _cause(error)
            text = " ".join(str(cause).split())[:160]
            return f"vmap of training_step fails{_place(cause)} ({type(cause).__name__}: {text}...)"
        for index in range(2):
            one = {name: value[index] for name, value in batch.items()}
            expected, loss = grad_and_value(self._loss)({name: value[index] for name, value in pair.items()}, one)
            wrong = [name for name, value in expected.items() if not _close(grads[name][index], value)]
            if wrong or not (_close(losses[index], loss) and _close(measured[index], loss)):
                return f"vmap of training_step gives other numbers than a loop (for {', '.join(wrong) or 'the loss'})"
        return ""


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6)


def _cause(error: BaseException) -> BaseException:
    """What somebody's code raised."""
    return error.__cause__ or error if isinstance(error, UsersCodeError) else error


def _place(error: BaseException) -> str:
    """The last line of somebody's own code that led to the error."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _global_state() -> tuple[bytes, bytes, object]:
    """What changes when a random number is drawn from global state."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        numpy_state[1].tobytes() + bytes([numpy_state[2] % 256]),
        random.getstate(),
    )
