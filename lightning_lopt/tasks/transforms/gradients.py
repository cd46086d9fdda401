"""Inexact gradients, which are noisy or rounded to few bits. The loss stays exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_lopt.checks import check_name_options, check_numbers, check_positive, check_range
from lightning_lopt.rules.base import Params
from lightning_lopt.rules.shared.arithmetic import TINY, rms
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import choice, log_uniform
from lightning_lopt.tasks.base import Batch, Split, Task
from lightning_lopt.tasks.transforms.base import Transform, TransformedTask

FORMATS: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


class NoisyGradientTask(TransformedTask):
    r"""Adds Gaussian noise to the gradient of each tensor, in proportion to the RMS of this gradient.

    .. math:: g' = g + \lambda\, \mathrm{RMS}(g)\, z, \qquad z \sim \mathcal N(0, 1), \qquad
        \mathbb E\, \lVert g' \rVert^2 = (1 + \lambda^2) \lVert g \rVert^2

    The noise is an entry of the batch, so the two particles of a pair share it; a full batch has no noise.

    Args:
        task: the task to change.
        level: :math:`\lambda \ge 0`.

    Raises:
        ValueError: if ``level`` is negative or not finite.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> NoisyGradientTask(bowl, level=0.1).name
        'quadratic/d2+noise(0.1)'
    """

    def __init__(self, task: Task, level: float) -> None:
        check_numbers(0.0, level=level)
        super().__init__(task, f"noise({level:g})", {"name": GradientNoise.name, "level": level})
        self.level = level
        example = task.init(derived_generator(0, "shapes"))
        self.templates = {self.entry_name(name): value for name, value in example.items() if name in task.roles}

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        drawn = super().draw(generator, *lead, split=split)
        return drawn | {
            name: self._noise((*lead, *value.shape), value, generator) for name, value in self.templates.items()
        }

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        return super().look_up(self.inner_entries(drawn), split) | {name: drawn[name] for name in self.templates}

    def full_batch(self, split: Split) -> Batch:
        return super().full_batch(split) | {name: torch.zeros_like(value) for name, value in self.templates.items()}

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        grads, loss, carried = super().gradient(params, batch)
        grads = {name: grad + self.level * rms(grad) * batch[self.entry_name(name)] for name, grad in grads.items()}
        return grads, loss, carried

    def _noise(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
        """Draws of z in the type of ``like``."""
        return torch.randn(shape, generator=generator, dtype=like.dtype)


class HeavyTailedGradientTask(NoisyGradientTask):
    r"""Noise as in :class:`NoisyGradientTask`, but heavy-tailed: :math:`z\, u^{-1/\alpha}` with u uniform in (0, 1).

    Moments of order :math:`\alpha` and above are infinite; so is the variance for :math:`\alpha \le 2`.

    Args:
        task: the task to change.
        level: factor on the noise, >= 0, in units of each gradient's RMS.
        tail: :math:`\alpha > 0`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> HeavyTailedGradientTask(bowl, level=0.1, tail=2.0).name
        'quadratic/d2+noise(0.1)-tail(2)'
    """

    def __init__(self, task: Task, level: float, tail: float = 1.5) -> None:
        check_positive(tail=tail)
        super().__init__(task, level)
        self.tail = tail
        self.name += f"-tail({tail:g})"
        self.config["transforms"][-1]["tail"] = tail

    def _noise(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
        heights = 1 - torch.rand(shape, generator=generator, dtype=like.dtype)  # in (0, 1]
        return super()._noise(shape, like, generator) * heights ** (-1 / self.tail)


@dataclass(frozen=True)
class GradientNoise(Transform):
    """:class:`NoisyGradientTask` with a level drawn log-uniformly.

    Attributes:
        low, high: bounds of the level, > 0.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> GradientNoise(low=0.5, high=0.5)(bowl, torch.Generator()).name
        'quadratic/d2+noise(0.5)'
    """

    name: ClassVar[str] = "gradient_noise"
    low: float = 0.01
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.low, self.high, self.name)

    def apply(self, task: Task, generator: torch.Generator) -> Task:
        return NoisyGradientTask(task, float(f"{log_uniform(self.low, self.high, generator):.4g}"))


def rounded_to(x: Tensor, precision: str) -> Tensor:
    """``x`` after rounding to a number format with fewer bits; the result has the type of ``x``.

    Args:
        x: floating point, any shape.
        precision: ``"bfloat16"``; ``"float16"``, which clips large entries and rounds small entries to 0; or
            ``"int8"``, with 127 equal steps up to the largest entry of the tensor.

    The derivative is defined as 1, so that meta-gradients pass through the rounding.

    >>> rounded_to(torch.tensor([1.0, 0.3, 0.001]), "int8") * 127
    tensor([127.,  38.,   0.])
    """
    if precision == "int8":
        step = x.abs().amax() / 127 + TINY
        return x + (torch.round(x / step) * step - x).detach()
    dtype = FORMATS[precision]
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype).to(x.dtype)


class LowPrecisionTask(TransformedTask):
    """Rounds the gradient as in :func:`rounded_to`.

    Args:
        task: the task to change.
        precision: name in :data:`FORMATS`.

    Raises:
        ValueError: if ``precision`` is unknown.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = LowPrecisionTask(Quadratic(torch.tensor([1.0, 4.0])), "int8")
        >>> bowl.gradient({"x": torch.tensor([0.3, 1.0])}, bowl.batch(torch.Generator()))[0]["x"]
        tensor([0.3150, 4.0000])
    """

    def __init__(self, task: Task, precision: str) -> None:
        check_name_options([precision], "precision", tuple(FORMATS))
        super().__init__(task, precision, {"name": LowPrecision.name, "precision": precision})
        self.precision = precision

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        grads, loss, carried = super().gradient(params, batch)
        return {name: rounded_to(grad, self.precision) for name, grad in grads.items()}, loss, carried


@dataclass(frozen=True)
class LowPrecision(Transform):
    """:class:`LowPrecisionTask` in one of several formats.

    Attributes:
        precisions: names in :data:`FORMATS`.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> LowPrecision(precisions=("bfloat16",))(bowl, torch.Generator()).name
        'quadratic/d2+bfloat16'
    """

    name: ClassVar[str] = "low_precision"
    precisions: Sequence[str] = tuple(FORMATS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name_options(self.precisions, "precisions", tuple(FORMATS))

    def apply(self, task: Task, generator: torch.Generator) -> Task:
        return LowPrecisionTask(task, choice(self.precisions, generator))
