"""Classification of rows of categories through an embedding table with zero gradients of most of its rows in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance, choice, integer, log_uniform, uniform
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.tables import Table
from lightning_lopt.tasks.tabular import with_noise

COMBINATIONS = ("concatenate", "sum")
VALID = 512
LATENT = 4


class CategoricalTask(ClassificationTask):
    """A perceptron ``layers.0`` and so on, whose input combines the embeddings of the categories in a row.

    Args:
        train: rows to train on; inputs are int64, shape ``(N, F)``: for each of F columns an index into the embedding
            table; different columns have different indices.
        valid: held-out rows.
        categories: number of rows of the embedding table.
        embedding: number of features of a category.
        combination: how columns are joined: ``"concatenate"`` or ``"sum"``.
        widths: width of each hidden layer; an empty sequence makes a linear model of the embeddings.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Example:
        >>> from lightning_lopt.tasks import Table
        >>> rows = torch.stack([torch.randint(0, 3, (40,)), torch.randint(3, 8, (40,))], 1)  # 3 and 5 categories
        >>> table = Table(rows, rows.sum(1) % 2, classes=2, name="mine")
        >>> task = CategoricalTask(table, table, categories=8, embedding=4, widths=())
        >>> {name: tuple(value.shape) for name, value in task.init(torch.Generator()).items()}
        {'embedding.weight': (8, 4), 'layers.0.weight': (2, 8), 'layers.0.bias': (2,)}
    """

    def __init__(
        self,
        train: Table,
        valid: Table,
        categories: int,
        embedding: int = 8,
        combination: str = "concatenate",
        widths: Sequence[int] = (32,),
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        joined = embedding * (train.inputs.shape[1] if combination == "concatenate" else 1)
        layout = Layout(scheme, init_scale)
        layout.table("embedding", categories, embedding)
        layout.mlp((joined, *widths, train.classes))
        super().__init__(train, valid, layout, **options)
        self.combination = combination
        self.layers = len(widths) + 1
        self.activation = ACTIVATIONS[activation]

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        x = params["embedding.weight"][inputs]
        x = x.flatten(-2) if self.combination == "concatenate" else x.sum(-2)
        return mlp(params, "layers", x, self.layers, self.activation)


class Categorical(ModelFamily):
    """Columns with few or many categories, some frequent and most rare, and classes that depend on all columns.

    Category c = 1, 2, ... of a column has a frequency of c^-a (Zipf's law). Each category has hidden coordinates.
    The class of a row is the largest output of a random perceptron whose input is the sum of the row's coordinates.
    Noise is in training labels only.

    Args:
        columns: numbers of columns F to draw from.
        categories: smallest and largest number of categories of a column, drawn log-uniformly for each.
        embeddings: features of a category to draw from.
        depths: numbers of hidden layers to draw from.
        widths: widths to draw from, separately for each hidden layer.
        options: ``activations``, ``batch_sizes``, ``schemes``, ``init_scales`` of :class:`ModelFamily`.

    Raises:
        ValueError: if a list is empty or an entry is unknown.

    Example:
        >>> family = Categorical(columns=(2,), categories=(4, 8), widths=(8,))
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> task.name, task.roles["embedding.weight"]
        ('categorical/2x11~b29a58/sum-e8-3/relu/b16', 'embedding')
    """

    name = "categorical"
    layers = ("embeddings",)

    def __init__(
        self,
        columns: Sequence[int] = (2, 4, 8),
        categories: tuple[int, int] = (4, 200),
        embeddings: Sequence[int] = (4, 8, 16),
        depths: Sequence[int] = (0, 1, 2),
        widths: Sequence[int] = (16, 32),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.ranges |= {
            "columns": check_size_options(columns, "columns"),
            "categories": check_size_options(categories, "categories"),
            "embeddings": check_size_options(embeddings, "embeddings"),
            "depths": check_size_options(depths, "depths", 0),
            "widths": check_size_options(widths, "widths"),
        }

    def sample(self, generator: torch.Generator) -> CategoricalTask:
        settings = self.draw_common(generator)
        settings["widths"] = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        settings["embedding"] = self.pick("embeddings", generator)
        settings["combination"] = choice(COMBINATIONS, generator)
        counts = [self.between("categories", generator) for _ in range(self.pick("columns", generator))]
        source: dict[str, Any] = {
            "categories": counts,
            "classes": integer(2, 7, generator),
            "exponent": round(uniform(0.0, 1.5, generator), 3),
            "examples": round(log_uniform(500, 10_000, generator)),
            "noise": round(uniform(0.0, 0.3, generator), 3) if chance(0.3, generator) else 0.0,
            "tag": f"{integer(0, 16**6, generator):06x}",
        }
        table = _draw_table(counts, source["classes"], source["exponent"], source["examples"] + VALID, generator)
        train, valid = table.cut(VALID)
        train = with_noise(train, source["noise"], generator)
        shape = "-".join(map(str, (f"e{settings['embedding']}", *settings["widths"], table.classes)))
        label = f"{len(counts)}x{sum(counts)}~{source['tag']}"
        name = self.task_name(label, f"{settings['combination']}-{shape}", settings)
        config = {"family": self.name, "source": source} | settings
        return CategoricalTask(train, valid, sum(counts), **settings, name=name, config=config)


def _draw_table(counts: Sequence[int], classes: int, exponent: float, rows: int, generator: torch.Generator) -> Table:
    """Rows of categories, which are numbered consecutively over all columns, and the class of each row."""
    inputs = []
    for column, count in enumerate(counts):
        frequency = torch.arange(1.0, count + 1) ** -exponent
        categories = torch.multinomial(frequency, rows, replacement=True, generator=generator)
        inputs.append(categories + sum(counts[:column]))
    joined = torch.stack(inputs, 1)
    hidden = torch.randn(sum(counts), LATENT, generator=generator)[joined].sum(1) / len(counts) ** 0.5
    layout = Layout("uniform", 3.0)
    layout.mlp((LATENT, 16, classes))
    logits = mlp(layout.draw(generator), "layers", hidden, 2, torch.tanh)
    logits = (logits - logits.mean(0)) / logits.std(0)  # this makes classes of roughly equal size
    return Table(joined, logits.argmax(1), classes, "categories")
