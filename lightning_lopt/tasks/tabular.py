"""Perceptrons on tables: classification and regression."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance, choice, integer, uniform
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.examples import ExamplesTask, accuracy, pairs
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.synthetic_tables import draw_class_table, draw_value_table
from lightning_lopt.tasks.tables import CLASS_TABLES, VALUE_TABLES, Table, TableLike, resolve_tables

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "squared": F.mse_loss,
    "huber": F.smooth_l1_loss,
}


class TabularTask(ExamplesTask):
    """A perceptron with parameters ``layers.0.weight`` (out, in), ``layers.0.bias`` (out,) and so on, on a table.

    An uninformed model gives all classes the same probability, or predicts the mean of the training values.

    Args:
        train: rows to train on.
        valid: held-out rows.
        widths: width of each hidden layer; an empty sequence makes a linear model.
        objective: ``"cross_entropy"`` for classes; ``"squared"`` or ``"huber"`` for values, averaged over the values.
        norm: layer normalisation before each activation.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Example:
        >>> from lightning_lopt.tasks import Table
        >>> table = Table.from_arrays(torch.randn(60, 5), torch.randn(60, 2), "mine")
        >>> train, valid = table.split(0.3, torch.Generator().manual_seed(0), max_valid=None)
        >>> task = TabularTask(train, valid, widths=(16,), objective="huber", batch_size=8)
        >>> {name: tuple(value.shape) for name, value in task.batch(torch.Generator()).items()}
        {'inputs': (8, 5), 'targets': (8, 2)}
    """

    def __init__(
        self,
        train: Table,
        valid: Table,
        widths: Sequence[int],
        objective: str,
        norm: bool = False,
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.inputs.shape[1], *widths, train.outputs), norm=norm)
        self.objective = LOSSES[objective]
        if train.classes:
            scale = math.log(train.classes)
        else:
            scale = float(self.objective(train.targets.mean(0).expand_as(train.targets), train.targets)) or 1.0
        super().__init__({"train": pairs(train), "valid": pairs(valid)}, layout, scale, **options)
        self.classes = train.classes
        self.layers = len(widths) + 1
        self.activation = ACTIVATIONS[activation]

    def outputs(self, params: Params, inputs: Tensor) -> Tensor:
        """Logits ``(B, classes)`` or values ``(B, K)`` for rows ``(B, D)``."""
        return mlp(params, "layers", inputs, self.layers, self.activation)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self.objective(self.outputs(params, batch["inputs"]), batch["targets"])

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        if not self.classes:
            return {}
        return {"accuracy": accuracy(self.outputs(params, batch["inputs"]), batch["targets"])}


def with_noise(table: Table, noise: float, generator: torch.Generator) -> Table:
    """Add noise to targets: redraw a share ``noise`` of the classes, or add noise of deviation ``noise`` to values."""
    if table.classes:
        random_classes = torch.randint(table.classes, (len(table),), generator=generator)
        is_replaced = torch.rand(len(table), generator=generator) < noise
        return replace(table, targets=torch.where(is_replaced, random_classes, table.targets))
    return replace(table, targets=table.targets + noise * torch.randn(table.targets.shape, generator=generator))


class TabularFamily(ModelFamily):
    """The common part of families on tables: draws of the table, the scales of its columns, noise, the perceptron.

    Columns are standardised. In half of the tasks, each column is then multiplied by a log-normal factor, and in some
    tasks each column is mixed with its neighbour. Noise is in training targets only.

    Args:
        data: tables, their names, or ``"synthetic"``; see :func:`~lightning_lopt.tasks.tables.resolve_tables`. Half of
            the tasks are synthetic by default.
        depths: numbers of hidden layers to draw from.
        widths: widths to draw from, separately for each hidden layer.
        valid_fraction: share of the rows that is held out.
        max_valid: upper bound on the number of held-out rows.
        options: ``activations``, ``batch_sizes``, ``schemes``, ``init_scales`` of :class:`ModelFamily`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or a table does not fit the family.
    """

    embedded: tuple[str, ...]
    objectives: tuple[str, ...]

    def __init__(
        self,
        data: TableLike | None = None,
        depths: Sequence[int] = (1, 2, 3),
        widths: Sequence[int] = (16, 32, 64),
        *,
        valid_fraction: float = 0.2,
        max_valid: int | None = 512,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.ranges |= {"depths": check_size_options(depths, "depths"), "widths": check_size_options(widths, "widths")}
        self.sources = resolve_tables(data, self.embedded)
        for source in self.sources:
            if isinstance(source, Table) and bool(source.classes) != (self.objectives == ("cross_entropy",)):
                target_type = "classes" if source.classes else "values"
                raise ValueError(f"{source.name}: the table has {target_type}, which {self.name} does not predict.")
        self.valid_fraction = valid_fraction
        self.max_valid = max_valid

    @property
    def config(self) -> dict[str, Any]:
        names = [source.name if isinstance(source, Table) else source for source in self.sources]
        return super().config | {"data": names, "objectives": list(self.objectives)}

    @abstractmethod
    def _draw_table(self, generator: torch.Generator) -> Table:
        """A synthetic table."""

    def sample(self, generator: torch.Generator) -> TabularTask:
        given_tables = [source for source in self.sources if isinstance(source, Table)]
        synthetic = len(given_tables) < len(self.sources) and (not given_tables or chance(0.5, generator))
        table = self._draw_table(generator) if synthetic else choice(given_tables, generator)
        settings = self.draw_common(generator)
        settings["widths"] = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        settings |= {"norm": chance(0.25, generator), "objective": choice(self.objectives, generator)}
        columns: dict[str, Any] = {
            "spread": round(uniform(0.2, 1.0, generator), 3) if chance(0.5, generator) else 0.0,
            "mixed": round(uniform(0.5, 1.0, generator), 3) if chance(0.25, generator) else 0.0,
            "noise": round(uniform(0.0, 0.3, generator), 3) if chance(0.3, generator) else 0.0,
            "tag": f"{integer(0, 16**6, generator):06x}",
        }
        train, valid = table.split(self.valid_fraction, generator, self.max_valid)
        scales = torch.exp(columns["spread"] * torch.randn(train.inputs.shape[1], generator=generator))
        train, valid = (
            replace(part, inputs=(part.inputs + columns["mixed"] * part.inputs.roll(1, 1)) * scales)
            for part in (train, valid)
        )
        train = with_noise(train, columns["noise"], generator)
        shape = "-".join(map(str, (train.inputs.shape[1], *settings["widths"], train.outputs)))
        shape += f"{'-norm' * settings['norm']}-{settings['objective']}"
        name = self.task_name(f"{table.name}~{columns['tag']}", shape, settings)
        config = {"family": self.name, "data": table.name, "columns": columns} | settings
        return TabularTask(train, valid, **settings, name=name, config=config)


class TabularClassification(TabularFamily):
    """Classes of rows: synthetic clusters, and scikit-learn's tables. For arguments see :class:`TabularFamily`.

    Example:
        >>> from lightning_lopt.tasks import Table
        >>> table = Table.from_arrays(torch.randn(60, 5), torch.arange(60) % 3, "mine")
        >>> task = TabularClassification(table, depths=(1,), widths=(16,)).sample(torch.Generator().manual_seed(0))
        >>> task.name
        'tabular_classification/mine~b29a58/5-16-3-cross_entropy/silu/b64'
    """

    name = "tabular_classification"
    embedded = CLASS_TABLES
    objectives = ("cross_entropy",)

    def _draw_table(self, generator: torch.Generator) -> Table:
        return draw_class_table(generator)


class TabularRegression(TabularFamily):
    """Values of rows: synthetic functions, and scikit-learn's tables. For arguments see :class:`TabularFamily`.

    Example:
        >>> family = TabularRegression("synthetic", depths=(1,), widths=(16,))
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> task.name
        'tabular_regression/synthetic~9d98a7/16-16-1-norm-huber/silu/b32'
    """

    name = "tabular_regression"
    embedded = VALUE_TABLES
    objectives = ("squared", "huber")

    def _draw_table(self, generator: torch.Generator) -> Table:
        return draw_value_table(generator)
