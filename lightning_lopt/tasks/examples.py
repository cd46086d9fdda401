"""Tasks on a fixed set of examples, and classification tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.devices import cached_on
from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks.accelerations import in_one_call
from lightning_lopt.tasks.base import Batch, Split, Task
from lightning_lopt.tasks.layout import Layout

INDEX = "index"
"""Name of the entry of a draw that holds the numbers of examples."""


class Labelled(Protocol):
    """Examples with one class each: labelled images, tables."""

    @property
    def inputs(self) -> Tensor: ...

    @property
    def targets(self) -> Tensor: ...

    @property
    def classes(self) -> int: ...


class ExamplesTask(Task):
    """A network trained on a fixed set of examples; mini-batches are drawn with replacement.

    Args:
        splits: tensors by name, examples along the first axis, for ``"train"`` and for held-out ``"valid"``.
        layout: the parameters.
        loss_scale: loss of an uninformed model.
        batch_size: B >= 1 examples in a mini-batch.
        name: name of the task.
        config: settings that were drawn for this task, JSON values only.

    Example:
        >>> from lightning_lopt.tasks import Layout
        >>> class Line(ExamplesTask):
        ...     def loss(self, params, batch):
        ...         return (batch["x"] @ params["line.weight"].mT + params["line.bias"] - batch["y"]).square().mean()
        >>> layout, x = Layout(), torch.linspace(-1, 1, 20)[:, None]
        >>> layout.linear("line", 1, 1)
        >>> points = {"x": x, "y": 2 * x + 1}
        >>> task = Line({"train": points, "valid": points}, layout, loss_scale=1.0, batch_size=4)
        >>> tuple(task.batch(torch.Generator(), 3)["x"].shape)  # three mini-batches of four examples
        (3, 4, 1)
    """

    def __init__(
        self,
        splits: Mapping[Split, Batch],
        layout: Layout,
        loss_scale: float,
        batch_size: int = 32,
        name: str = "examples",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.splits = splits
        self.layout = layout
        self.roles = layout.roles
        self.loss_scale = loss_scale
        self.batch_size = batch_size
        self.steps_per_epoch = next(iter(splits["train"].values())).shape[0] / batch_size
        self.name = name
        self.config = config or {}

    def init(self, generator: torch.Generator) -> Params:
        return self.layout.draw(generator)

    @in_one_call()
    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        count = next(iter(self.splits[split].values())).shape[0]
        return {INDEX: torch.randint(count, (*lead, self.batch_size), generator=generator)}

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        indices = drawn[INDEX]
        data = {key: cached_on(value, indices.device) for key, value in self.splits[split].items()}
        shape, flat_indices = indices.shape, indices.flatten()
        # index_select of flat indices is several times faster than value[indices] with leading axes
        return {
            key: value.index_select(0, flat_indices).reshape(*shape, *value.shape[1:]) for key, value in data.items()
        }

    def full_batch(self, split: Split) -> Batch:
        return dict(self.splits[split])


class RandomExamplesTask(ExamplesTask):
    """Examples with additional random entries in every mini-batch, which a subclass defines.

    Attributes:
        random_when_measured: whether full batches have these entries, too, with the same values at every call.

    Example:
        >>> from lightning_lopt.tasks import Layout
        >>> class NoisyLine(RandomExamplesTask):
        ...     def random_entries(self, examples, generator):
        ...         return {"noise": torch.randn(*examples, 1, generator=generator)}
        ...     def loss(self, params, batch):
        ...         errors = batch["x"] @ params["line.weight"].mT + params["line.bias"] - batch["y"]
        ...         return (errors - 0.1 * batch["noise"]).square().mean()
        >>> layout, points = Layout(), {"x": torch.linspace(-1, 1, 20)[:, None], "y": torch.ones(20, 1)}
        >>> layout.linear("line", 1, 1)
        >>> task = NoisyLine({"train": points, "valid": points}, layout, loss_scale=1.0, batch_size=4)
        >>> {name: tuple(value.shape) for name, value in task.batch(torch.Generator()).items()}
        {'x': (4, 1), 'y': (4, 1), 'noise': (4, 1)}
    """

    random_when_measured: ClassVar[bool] = True

    @abstractmethod
    def random_entries(self, examples: torch.Size, generator: torch.Generator) -> Batch:
        """Random entries of a batch, drawn from ``generator`` alone.

        Args:
            examples: leading axes of the entries; the last one is the axis of the examples.
            generator: random generator on the CPU.
        """

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        drawn = super().draw(generator, *lead, split=split)
        return drawn | self.random_entries(drawn[INDEX].shape, generator)

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        return super().look_up(drawn, split) | {name: value for name, value in drawn.items() if name != INDEX}

    def full_batch(self, split: Split) -> Batch:
        batch = super().full_batch(split)
        if not self.random_when_measured:
            return batch
        examples = next(iter(batch.values())).shape[:1]
        return batch | self.random_entries(examples, derived_generator(0, "full batch", split))


class ClassificationTask(ExamplesTask):
    """Cross-entropy on labelled examples; a subclass defines the logits.

    A batch is ``{"inputs": (*lead, B, ...), "targets": (*lead, B) int64}``; images are (C, H, W) float32.

    Args:
        train: examples of mini-batches for training.
        valid: held-out examples, with the same shape and classes.
        layout: the parameters.
        options: ``batch_size``, ``name``, ``config`` of :class:`ExamplesTask`.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages, Layout
        >>> class LogisticRegression(ClassificationTask):
        ...     def logits(self, params, inputs):
        ...         return inputs.flatten(-3) @ params["head.weight"].mT + params["head.bias"]
        >>> images, layout = LabelledImages.from_arrays(torch.rand(60, 4, 4), torch.arange(60) % 3), Layout()
        >>> layout.linear("head", 16, 3, role="head")
        >>> task = LogisticRegression(images, images, layout, batch_size=8)
        >>> sorted(task.metrics(task.init(torch.Generator()), task.batch(torch.Generator())))
        ['accuracy']
    """

    def __init__(self, train: Labelled, valid: Labelled, layout: Layout, **options: Any) -> None:
        super().__init__({"train": pairs(train), "valid": pairs(valid)}, layout, math.log(train.classes), **options)
        self.classes = train.classes

    @abstractmethod
    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        """Logits, shape ``(B, classes)``, for inputs of shape ``(B, ...)``."""

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(params, batch["inputs"]), batch["targets"])

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": accuracy(self.logits(params, batch["inputs"]), batch["targets"])}


def pairs(data: Labelled) -> Batch:
    """The tensors of labelled examples by name."""
    return {"inputs": data.inputs, "targets": data.targets}


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of examples, 0-dim, whose largest logit (last axis) belongs to their class."""
    return (logits.argmax(-1) == targets).float().mean()
