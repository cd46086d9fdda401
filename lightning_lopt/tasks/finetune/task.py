"""Fine-tuning tasks, whose network was pretrained on another task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from lightning_lopt.devices import cached_on
from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks.base import Batch, Task
from lightning_lopt.tasks.finetune.adapters import adapted, adapter_roles, draw_adapters
from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.transforms.base import TransformedTask, tag
from lightning_lopt.tasks.transforms.parts import FrozenTask


class FineTuneTask(TransformedTask):
    r"""Training of a network whose *body* starts at pretrained values and whose *head* is drawn for every run.

    The parameters contain only tensors that are trained; frozen tensors belong to the task, as its data do. The metrics
    are those of ``task`` and ``"body_moved"``, the relative distance of the weights of the body (matrices, kernels,
    tables; not biases and normalisations) from their pretrained values:

    .. math:: \sqrt{\sum_i \lVert W_i - W_i^0 \rVert^2} \Big/ \sqrt{\sum_i \lVert W_i^0 \rVert^2}

    Args:
        task: the new task, with a network that shares tensors with the pretrained one.
        pretraining: pretraining of the body, which is computed when parameters are first needed.
        body: names of the task's tensors that start at pretrained values, and their names in the pretraining. ``None``
            takes every tensor that has the same name and shape in both networks, except the tensors of the head.
        frozen: names of tensors of the body that keep their values.
        rank: r > 0 freezes the whole body and trains low-rank adapters of its matrices and kernels instead, see
            :mod:`~lightning_lopt.tasks.finetune.adapters`.

    Attributes:
        body: names of the tensors with pretrained values, and their names in the pretraining.
        head: names of the task's tensors that are drawn for every run.

    Raises:
        ValueError: if a name is unknown, a shape differs, no tensor is shared, or ``frozen`` and ``rank`` are given.

    Example:
        >>> from lightning_lopt.tasks import ImageMLPTask
        >>> from lightning_lopt.tasks.finetune.synthetic_images import draw_images
        >>> images = draw_images(torch.Generator().manual_seed(0), classes=4, examples=200)
        >>> old, new = images.take(torch.arange(150)), images.take(torch.arange(150, 200))
        >>> task = FineTuneTask(ImageMLPTask(new, new, (16,)), Pretraining(ImageMLPTask(old, new, (16,)), steps=20))
        >>> task.body, task.head
        ({'layers.0.weight': 'layers.0.weight', 'layers.0.bias': 'layers.0.bias'}, ('layers.1.weight', 'layers.1.bias'))
    """

    def __init__(
        self,
        task: Task,
        pretraining: Pretraining,
        *,
        body: Mapping[str, str] | None = None,
        frozen: Sequence[str] = (),
        rank: int = 0,
    ) -> None:
        initial, pretrained = (each_task.init(derived_generator(0, "shapes")) for each_task in (task, pretraining.task))
        if body is None:
            head_tensors = head_names(task)
            matching_names = (
                name for name in initial if name in pretrained and initial[name].shape == pretrained[name].shape
            )
            body = {name: name for name in matching_names if name not in head_tensors}
        for name, source in body.items():
            if name not in initial or source not in pretrained or initial[name].shape != pretrained[source].shape:
                raise ValueError(
                    f"body maps {name!r} to {source!r}, but {task.name} has {_shape(initial, name)} and "
                    f"{pretraining.task.name} has {_shape(pretrained, source)}; map tensors of the same shape."
                )
        if not body:
            raise ValueError(f"{task.name} shares no tensor with {pretraining.task.name}; give two similar networks.")
        if frozen and rank:
            raise ValueError(f"rank={rank} freezes the whole body; leave frozen empty, got {list(frozen)!r}.")
        if not set(frozen) <= body.keys():
            raise ValueError(f"frozen must be some of {sorted(body)}, got {list(frozen)!r}.")
        if type(rank) is not int or rank < 0:
            raise ValueError(f"rank must be an integer >= 0, got {rank!r}.")
        self.body = dict(body)
        self.head = tuple(name for name in task.roles if name not in body)
        self.rank = rank
        self.frozen = tuple(body) if rank else tuple(frozen)
        self.matrices = tuple(name for name in body if rank and task.roles[name] == "matrix")
        if not (set(task.roles) - set(self.frozen) or self.matrices):
            raise ValueError(f"nothing is left to train in {task.name}; freeze fewer tensors.")
        self.pretraining = pretraining
        settings: dict[str, Any] = {
            "name": "fine_tune",
            "pretraining": {"task": pretraining.task.name, "steps": pretraining.steps, "lr": pretraining.lr}
            | {"seed": pretraining.seed},
            "body": sorted(self.body),
            "frozen": [] if rank else sorted(self.frozen),
            "rank": rank,
        }
        super().__init__(task, f"finetune~{tag(settings)}", settings)
        trained = {name: role for name, role in task.roles.items() if name not in self.frozen}
        self.roles = trained | adapter_roles(self.matrices)
        self._start: Params | None = None

    @property
    def start(self) -> Params:
        """The pretrained body by name, which is computed at the first call; this call must not be inside ``vmap``."""
        if self._start is None:
            params = self.pretraining.params()
            self._start = {name: params[source] for name, source in self.body.items()}
        return self._start

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_start": self.start}  # so that another process does not pretrain again

    def init(self, generator: torch.Generator) -> Params:
        initial_params = self.task.init(generator) | {name: value.clone() for name, value in self.start.items()}
        matrices = {name: self.start[name] for name in self.matrices}
        factors = draw_adapters(matrices, self.rank, generator)
        return {name: value for name, value in initial_params.items() if name not in self.frozen} | factors

    def inner(self, params: Params) -> Params:
        """All tensors of the network: trained tensors, frozen tensors, and matrices plus their adapters."""
        device = next(iter(params.values())).device
        frozen = {name: cached_on(self.start[name], device) for name in self.frozen}
        trained = {name: value for name, value in params.items() if name in self.task.roles}
        return frozen | trained | adapted({name: frozen[name] for name in self.matrices}, params)

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        grads, loss = grad_and_value(self.loss)({name: params[name] for name in self.roles}, batch)
        return grads, loss, {}

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        return super().metrics(params, batch) | {"body_moved": self.body_moved(params)}

    def body_moved(self, params: Params) -> Tensor:
        """Distance of the body's weights from their pretrained values, 0-dim, divided by the norm of those values."""
        current_params = self.inner(params)
        weights = [name for name in self.body if self.task.roles[name] != "vector"]
        start = {name: cached_on(self.start[name], current_params[name].device) for name in weights}
        squared_distance = torch.stack([(current_params[name] - start[name]).square().sum() for name in weights]).sum()
        return (squared_distance / torch.stack([start[name].square().sum() for name in weights]).sum()).sqrt()


def head_names(task: Task) -> tuple[str, ...]:
    """Names of the tensors of a network's last layer: those with the role ``"head"``, and their biases.

    >>> from lightning_lopt.tasks import TabularTask
    >>> from lightning_lopt.tasks.synthetic_tables import draw_value_table
    >>> table = draw_value_table(torch.Generator().manual_seed(0))
    >>> head_names(TabularTask(table, table, (8,), "squared"))
    ('layers.1.weight', 'layers.1.bias')
    """
    layers = {name.rpartition(".")[0] for name, role in task.roles.items() if role == "head"}
    return tuple(name for name in task.roles if name.rpartition(".")[0] in layers)


def head_alone(task: Task) -> Task:
    """The task with all tensors frozen except in the last layer; initial values and mini-batches do not change.

    Raises:
        ValueError: if no tensor has the role ``"head"``.

    >>> from lightning_lopt.tasks import TabularTask
    >>> from lightning_lopt.tasks.synthetic_tables import draw_value_table
    >>> table = draw_value_table(torch.Generator().manual_seed(0))
    >>> sorted(head_alone(TabularTask(table, table, (8,), "squared")).roles)
    ['layers.1.bias', 'layers.1.weight']
    """
    head = head_names(task)
    if not head:
        raise ValueError(f"no tensor of {task.name} has the role 'head', so a head cannot be trained alone.")
    frozen = [name for name in task.roles if name not in head]
    return FrozenTask(task, frozen) if frozen else task


def _shape(params: Params, name: str) -> str:
    return f"shape {tuple(params[name].shape)}" if name in params else "no such tensor"
