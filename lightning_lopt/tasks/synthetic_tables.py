"""Synthetic tables, in which classes are clusters and values are sums of a few non-linear terms."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.tasks._draw import chance, choice, integer, log_uniform, uniform
from lightning_lopt.tasks.tables import Table

ROWS = (200, 4000)
COLUMNS = (4, 32)
TERMS = ("sine", "step", "fold", "product")


def draw_class_table(generator: torch.Generator) -> Table:
    """A table with two to six classes of unequal size; a class has one to three Gaussian clusters in some directions.

    The columns are random mixtures of all directions, including those without clusters, and some have long tails.
    """
    rows, columns = _shape(generator)
    classes, per_class = integer(2, 7, generator), integer(1, 4, generator)
    informative = integer(2, columns + 1, generator)
    centres = uniform(1.0, 3.0, generator) * torch.randn(classes * per_class, informative, generator=generator)
    weights = torch.exp(uniform(0.0, 1.0, generator) * torch.randn(classes * per_class, generator=generator))
    clusters = torch.multinomial(weights, rows, replacement=True, generator=generator)
    inputs = torch.randn(rows, columns, generator=generator)
    inputs[:, :informative] += centres[clusters]
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    return Table(_with_tails(inputs @ mixing, generator), clusters % classes, classes, "synthetic")


def draw_value_table(generator: torch.Generator) -> Table:
    """A table with one to three values; each is a sum of three to eight terms (:data:`TERMS`) of random directions.

    Some columns have few different values, and some have long tails.
    """
    rows, columns = _shape(generator)
    inputs = torch.randn(rows, columns, generator=generator)
    is_rounded = torch.rand(columns, generator=generator) < 0.2
    inputs = torch.where(is_rounded, inputs.round(), inputs)
    values = []
    for _ in range(integer(1, 4, generator)):
        terms = [_term(inputs, generator) for _ in range(integer(3, 9, generator))]
        values.append(torch.stack(terms).sum(0))
    return Table(_with_tails(inputs, generator), torch.stack(values, 1), 0, "synthetic")


def _shape(generator: torch.Generator) -> tuple[int, int]:
    return round(log_uniform(*ROWS, generator)), integer(COLUMNS[0], COLUMNS[1] + 1, generator)


def _term(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """A function of one or two random directions of variance 1, times a random weight: shape ``(N,)``."""
    directions = torch.randn(inputs.shape[1], 2, generator=generator)
    first_projection, second_projection = (inputs @ (directions / directions.norm(dim=0))).unbind(1)
    term = choice(TERMS, generator)
    offset, weight = uniform(-1.0, 1.0, generator), uniform(-1.0, 1.0, generator)
    shapes: dict[str, Tensor] = {
        "sine": torch.sin(2 * first_projection + offset),
        "step": (first_projection > offset).float(),
        "fold": (first_projection - offset).abs(),
        "product": first_projection * second_projection,
    }
    return shapes[term] * weight


def _with_tails(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """In half of all tables, replace about a fifth of the columns by a skewed function of the column."""
    if not chance(0.5, generator):
        return inputs
    is_skewed = torch.rand(inputs.shape[1], generator=generator) < 0.2
    return torch.where(is_skewed, torch.exp(inputs.clamp(-4, 4)), inputs)
