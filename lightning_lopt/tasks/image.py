"""Image classification: what all its tasks and families share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import chance, check_names, check_sizes, choice, log_uniform
from lightning_lopt.tasks.base import Batch, Split, Task, TaskFamily
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.variety import Variety

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}


class ClassificationTask(Task):
    """Cross-entropy on labelled images; a subclass brings parameters and logits.

    A batch is ``{"inputs": (*lead, B, C, H, W) float32, "targets": (*lead, B) int64}``, drawn with replacement.

    Args:
        train: what mini-batches come from by default.
        valid: held-out images, with the same shape and classes.
        batch_size: B >= 1.
        name: name of the task.
        config: everything that was drawn for this task, JSON values only.
    """

    def __init__(
        self, train: LabelledImages, valid: LabelledImages, batch_size: int, name: str, config: dict[str, Any]
    ) -> None:
        self.data: dict[Split, LabelledImages] = {"train": train, "valid": valid}
        self.batch_size = batch_size
        self.name = name
        self.config = config
        self.classes = train.classes
        self.loss_scale = math.log(train.classes)

    @abstractmethod
    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        """Logits, shape ``(B, classes)``, for images of shape ``(B, C, H, W)``."""

    def batch(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        data = self.data[split]
        shape = (*lead, self.batch_size)
        indices = torch.randint(len(data), (math.prod(shape),), generator=generator)
        # index_select of flat indices is several times faster than data.inputs[indices] with leading axes
        inputs = data.inputs.index_select(0, indices).reshape(*shape, *data.shape)
        return {"inputs": inputs, "targets": data.targets.index_select(0, indices).reshape(shape)}

    def full_batch(self, split: Split) -> Batch:
        return {"inputs": self.data[split].inputs, "targets": self.data[split].targets}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(params, batch["inputs"]), batch["targets"])

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        right = self.logits(params, batch["inputs"]).argmax(-1) == batch["targets"]
        return {"accuracy": right.float().mean()}


class ImageFamily(TaskFamily):
    """What image families draw in the same way: the data and its variation, activation, batch size, scale at init.

    Args:
        data: one or several sources, as labelled images, names or paths; ``None`` means the handwritten digits.
        activations: names in :data:`ACTIVATIONS` to draw from.
        batch_sizes: batch sizes to draw from.
        variety: draw a :class:`Variety` of the data and a factor on the initial weights in [0.5, 2] for each task,
            so that one small data set gives many problems. Without it every task is the plain data.
        size: resize all images to ``size`` × ``size`` first; ``None`` leaves them.
        valid_fraction: share of a task's images held out as its ``"valid"`` split.
        max_valid: upper bound on their number, since ``full_batch("valid")`` is measured for many inner runs at once.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.
        ImportError: if ``data`` is ``None`` and scikit-learn is not installed.
    """

    def __init__(
        self,
        data: DataLike | None = None,
        *,
        activations: Sequence[str] = tuple(ACTIVATIONS),
        batch_sizes: Sequence[int] = (16, 32, 64, 128),
        variety: bool = True,
        size: int | None = None,
        valid_fraction: float = 0.2,
        max_valid: int | None = 512,
    ) -> None:
        self.activations = check_names(activations, "activations", tuple(ACTIVATIONS))
        self.batch_sizes = check_sizes(batch_sizes, "batch_sizes")
        self.variety = variety
        self.size = size
        self.valid_fraction = valid_fraction
        self.max_valid = max_valid
        sources = resolve(data)
        self.sources = [(source if size is None else source.resized(size)).standardised() for source in sources]
        for source in self.sources:
            counts = torch.bincount(source.targets, minlength=source.classes)
            if variety and int(counts.min()) < 2:
                raise ValueError(
                    f"{source.name}: class {int(counts.argmin())} has {int(counts.min())} images; variety=True keeps "
                    "only some classes, so each needs at least 2 images. Give more images, or pass variety=False."
                )
        self._plain_splits = [
            source.split(valid_fraction, derived_generator(0, "split", source.name), max_valid)
            for source in self.sources
        ]

    @property
    def config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "data": [source.name for source in self.sources],
            "activations": list(self.activations),
            "batch_sizes": list(self.batch_sizes),
            "variety": self.variety,
            "size": self.size,
        }

    def sample(self, generator: torch.Generator) -> ClassificationTask:
        index = choice(range(len(self.sources)), generator)
        source = self.sources[index]
        config: dict[str, Any] = {
            "family": self.name,
            "data": source.name,
            "activation": choice(self.activations, generator),
            "batch_size": choice(self.batch_sizes, generator),
            "init_scale": 1.0,
        }
        if not self.variety:
            return self._build(*self._plain_splits[index], config, source.name, generator)
        if chance(0.5, generator):
            config["init_scale"] = round(log_uniform(0.5, 2.0, generator), 3)
        variety = Variety.draw(source, generator)
        config["variety"] = variety.config
        train, valid = variety.apply(source, self.valid_fraction, self.max_valid)
        return self._build(train, valid, config, f"{source.name}~{variety.tag}", generator)

    @abstractmethod
    def _build(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        config: dict[str, Any],
        label: str,
        generator: torch.Generator,
    ) -> ClassificationTask:
        """Draw an architecture and make the task; ``label`` names the data in the task's name."""


def uniform_init(shape: Sequence[int], fan_in: int, scale: float, generator: torch.Generator) -> Tensor:
    r"""Uniform in :math:`\pm\text{scale}/\sqrt{\text{fan\_in}}`: how PyTorch initialises linear and conv layers."""
    bound = scale / math.sqrt(fan_in)
    return (2 * torch.rand(tuple(shape), generator=generator) - 1) * bound
