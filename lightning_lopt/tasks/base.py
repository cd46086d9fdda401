"""The interface of tasks and task families: parameters, a loss and batches, as pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from lightning_lopt.rules.base import Params, Role

Batch = dict[str, Tensor]
Split = Literal["train", "valid"]
Layers = Literal["convolutions", "recurrent layers", "attention", "embeddings"]

AUXILIARY_PREFIX = "~"
"""Prefix of the names of entries of params and batches that are neither parameters nor examples."""


class MissingSplitError(ValueError):
    """A task has no batches of the requested split."""


class Task(ABC):
    """One inner problem. It has data and shapes, but no parameters, so ``vmap`` can map over many inner runs of it.

    Attributes:
        name: short and unique within a family, for logs (``"image_mlp/digits/64-32-10/relu/b64"``).
        roles: role of each parameter that a rule trains. Further entries of ``params`` are *carried entries*: state of
            the task from one inner step to the next, which the rule does not get.
        loss_scale: loss of an uninformed model, which predicts a constant (for example ``log(classes)``), > 0; losses
            of different tasks are divided by their ``loss_scale`` before they are averaged.
        config: settings that were drawn for this task, JSON values only.
        steps_per_epoch: number of mini-batches in the training data; ``None`` if these data have no size.

    Example:
        >>> class Bowl(Task):
        ...     name, roles, config = "bowl", {"x": "vector"}, {}
        ...     def init(self, generator):
        ...         return {"x": torch.randn(3, generator=generator)}
        ...     def draw(self, generator, *lead, split="train"):
        ...         return {"noise": torch.randn(*lead, 3, generator=generator)}
        ...     def full_batch(self, split):
        ...         return {"noise": torch.zeros(3)}
        ...     def loss(self, params, batch):
        ...         return (params["x"] + 0.1 * batch["noise"]).square().mean()
        >>> bowl = Bowl()
        >>> gradient, loss, _ = bowl.gradient({"x": torch.ones(3)}, bowl.full_batch("train"))
        >>> gradient["x"], loss.item()
        (tensor([0.6667, 0.6667, 0.6667]), 1.0)
    """

    name: str
    roles: dict[str, Role]
    loss_scale: float = 1.0
    config: dict[str, Any]
    steps_per_epoch: float | None = None

    @abstractmethod
    def init(self, generator: torch.Generator) -> Params:
        """Freshly initialised parameters by name, drawn from ``generator`` alone."""

    @abstractmethod
    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        """The random part of mini-batches, drawn from ``generator`` alone, with leading axes ``lead``.

        The random part is drawn on the CPU and copied to the device of the inner runs. A task that selects examples by
        number draws the numbers.
        """

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        """The mini-batches for ``drawn``, a result of :meth:`draw`, with the device and the leading axes of ``drawn``;
        by default ``drawn`` itself."""
        return drawn

    @final
    def batch(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        """Mini-batches drawn from ``generator`` alone, with leading axes ``lead`` (one batch for each index)."""
        return self.look_up(self.draw(generator, *lead, split=split), split)

    @abstractmethod
    def full_batch(self, split: Split) -> Batch:
        """The whole split as one batch, for measuring."""

    @abstractmethod
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean loss of one batch, 0-dim: a pure function, differentiable and vmap-able in ``params`` and ``batch``."""

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        """Gradient and loss for an inner step. A task overrides it to change the gradient but not the loss.

        The method is pure and vmap-able like :meth:`loss`. Noise is an entry of ``batch``, so the particles of a pair
        share it.

        Returns:
            the gradient for each name in :attr:`roles`, the loss, 0-dim, and new values for carried entries.
        """
        grads, loss = grad_and_value(self.loss)(params, batch)
        return grads, loss, {}

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        """Further metrics of a batch for reports, 0-dim each (accuracy for classification)."""
        return {}


class TaskFamily(ABC):
    """A distribution of tasks for meta-training.

    Attributes:
        name: name in mixtures, logs and cards.
        layers: kinds of layers in the networks of the family; ``assess`` reports which kinds meta-training contained.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> class Bowls(TaskFamily):
        ...     name = "bowls"
        ...     def sample(self, generator):
        ...         return Quadratic(torch.rand(2, generator=generator) + 0.1)
        >>> family = Bowls()
        >>> first, again = (family.sample(torch.Generator().manual_seed(0)) for _ in range(2))
        >>> torch.equal(first.curvature, again.curvature)
        True
    """

    name: str
    layers: ClassVar[tuple[Layers, ...]] = ()

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Task:
        """Draw a task from ``generator`` alone: the same generator state gives the same task."""

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the family, JSON values only, for cards and logs."""
        return {"name": self.name}
