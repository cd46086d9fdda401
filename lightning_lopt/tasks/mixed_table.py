"""Classification of rows that have columns of categories and columns of numbers, with dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_unit_interval
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import AUXILIARY_PREFIX, Batch, Split
from lightning_lopt.tasks.categorical import LATENT
from lightning_lopt.tasks.examples import RandomExamplesTask, accuracy
from lightning_lopt.tasks.layers import ACTIVATIONS, linear, mlp
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.seeded_random import seeded_uniform
from lightning_lopt.tasks.teacher import draw_teacher

MASKS = f"{AUXILIARY_PREFIX}masks"
"""Name of the entry of a batch that holds the seeds of dropout masks; without this entry there is no dropout."""
MAX_EMBEDDING = 16


@dataclass(frozen=True, eq=False)
class MixedTable:
    """Rows of categories and numbers; each row has a class.

    Attributes:
        categories: int64, shape ``(N, F)``; column f holds numbers in ``[0, counts[f])``.
        numbers: float32, shape ``(N, D)``.
        targets: int64, shape ``(N,)``, in ``[0, classes)``.
        counts: number of categories of each column, F of them.
        classes: number of classes, >= 2.
    """

    categories: Tensor
    numbers: Tensor
    targets: Tensor
    counts: tuple[int, ...]
    classes: int

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, begin: int, end: int) -> MixedTable:
        """The rows from ``begin`` to before ``end``."""
        tensors = {name: getattr(self, name)[begin:end] for name in ("categories", "numbers", "targets")}
        return replace(self, **tensors)


def draw_mixed_table(
    generator: torch.Generator, rows: int, counts: Sequence[int], numbers: int, classes: int, sharpness: float = 2.0
) -> tuple[MixedTable, Tensor]:
    """Rows whose class is drawn from probabilities that a random network computes from all columns.

    Category c = 1, 2, ... of a column has a frequency of 1/c (Zipf's law), and hidden coordinates. The class of every
    row is random, also on held-out rows, so the smallest possible expected loss is the entropy of the probabilities.

    Args:
        generator: random generator of all draws.
        rows: number N of rows.
        counts: number of categories of each column.
        numbers: number D of columns of standard normal numbers.
        classes: number of classes.
        sharpness: factor on the network's logits; larger means less noise.

    Returns:
        the rows, and the probabilities from which their classes were drawn, shape ``(N, classes)``.

    Example:
        >>> table, chances = draw_mixed_table(torch.Generator().manual_seed(0), 100, (3, 5), 4, 2)
        >>> tuple(table.categories.shape), tuple(table.numbers.shape), tuple(chances.shape)
        ((100, 2), (100, 4), (100, 2))
    """
    columns, hidden = [], torch.zeros(rows, LATENT)
    for count in counts:
        frequency = 1 / torch.arange(1.0, count + 1)
        column = torch.multinomial(frequency, rows, replacement=True, generator=generator)
        hidden = hidden + torch.randn(count, LATENT, generator=generator)[column] / len(counts) ** 0.5
        columns.append(column)
    values = torch.randn(rows, numbers, generator=generator)
    inputs = torch.cat([hidden, values], 1)
    teacher = draw_teacher((LATENT + numbers, 32, classes), "tanh", inputs, generator)
    chances = torch.softmax(sharpness * mlp(teacher, "layers", inputs, 2, torch.tanh), -1)
    targets = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return MixedTable(torch.stack(columns, 1), values, targets, tuple(counts), classes), chances


class MixedTableTask(RandomExamplesTask):
    """Cross-entropy of a perceptron on embeddings of categories and on numbers, with dropout in training.

    Column f of categories has a table ``embeddings.f.weight`` of half as many features as categories, 16 at most. The
    concatenated embeddings and numbers are the inputs of the perceptron ``layers.0`` and so on, with dropout after each
    activation. A seed in each mini-batch determines the masks. Whole splits have no seed and no dropout.

    A batch is ``{"categories": (*lead, B, F), "numbers": (*lead, B, D), "targets": (*lead, B), "~masks": (*lead,)}``.

    Args:
        train: rows to train on.
        valid: held-out rows with the same columns.
        widths: width of each hidden layer, at least one.
        dropout: share of hidden activations that is dropped, in [0, 1).
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Raises:
        ValueError: if ``dropout`` lies outside its range.

    References: Guo and Berkhahn 2016 on embeddings of categories, https://arxiv.org/abs/1604.06737

    Example:
        >>> table, _ = draw_mixed_table(torch.Generator().manual_seed(0), 100, (3, 50), 4, 2)
        >>> task = MixedTableTask(table.rows(0, 80), table.rows(80, 100), widths=(8,))
        >>> {name: tuple(value.shape) for name, value in task.init(torch.Generator()).items() if "emb" in name}
        {'embeddings.0.weight': (3, 2), 'embeddings.1.weight': (50, 16)}
    """

    random_when_measured: ClassVar[bool] = False

    def __init__(
        self,
        train: MixedTable,
        valid: MixedTable,
        widths: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        check_unit_interval(dropout=dropout)
        layout = Layout(scheme, init_scale)
        features = train.numbers.shape[1]
        for column, count in enumerate(train.counts):
            width = min((count + 1) // 2, MAX_EMBEDDING)
            layout.table(f"embeddings.{column}", count, width)
            features += width
        layout.mlp((features, *widths, train.classes))
        splits: dict[Split, Batch] = {"train": _columns(train), "valid": _columns(valid)}
        super().__init__(splits, layout, math.log(train.classes), **options)
        self.columns = len(train.counts)
        self.layers = len(widths) + 1
        self.dropout = dropout
        self.activation = ACTIVATIONS[activation]

    def random_entries(self, examples: torch.Size, generator: torch.Generator) -> Batch:
        return {MASKS: torch.randint(2**62, examples[:-1], generator=generator)} if self.dropout else {}

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Logits of the classes, shape ``(B, classes)``."""
        tables = (params[f"embeddings.{column}.weight"] for column in range(self.columns))
        rows = [table[batch["categories"][:, column]] for column, table in enumerate(tables)]
        x = torch.cat([*rows, batch["numbers"]], -1)
        for layer in range(self.layers - 1):
            x = self.activation(linear(params, f"layers.{layer}", x))
            if MASKS in batch:
                mask = seeded_uniform(batch[MASKS], layer, x.shape) >= self.dropout
                x = torch.where(mask, x / (1 - self.dropout), 0.0)
        return linear(params, f"layers.{self.layers - 1}", x)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(params, batch), batch["targets"])

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        return {"accuracy": accuracy(self.logits(params, batch), batch["targets"])}


def _columns(table: MixedTable) -> Batch:
    return {"categories": table.categories, "numbers": table.numbers, "targets": table.targets}
