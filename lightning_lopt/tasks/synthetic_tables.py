"""Synthetic tables: classes are clusters, values are sums of a few non-linear terms."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.tasks._draw import chance, choice, integer, log_uniform, uniform
from lightning_lopt.tasks.tables import Table

ROWS = (200, 4000)
COLUMNS = (4, 32)
TERMS = ("sine", "step", "fold", "product")


def draw_class_table(generator: torch.Generator) -> Table:
    """Two to six classes of unequal size, each of one to three Gaussian clusters in some directions of space.

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
    """One to three values, each a sum of three to eight terms (sine, step, fold, product) of random directions.

    Some columns take few different values, and some have long tails.
    """
    rows, columns = _shape(generator)
    inputs = torch.randn(rows, columns, generator=generator)
    rounded = torch.rand(columns, generator=generator) < 0.2
    inputs = torch.where(rounded, inputs.round(), inputs)
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
    first, second = (inputs @ (directions / directions.norm(dim=0))).unbind(1)
    kind = choice(TERMS, generator)
    offset, weight = uniform(-1.0, 1.0, generator), uniform(-1.0, 1.0, generator)
    shapes: dict[str, Tensor] = {
        "sine": torch.sin(2 * first + offset),
        "step": (first > offset).float(),
        "fold": (first - offset).abs(),
        "product": first * second,
    }
    return shapes[kind] * weight


def _with_tails(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the columns, in half of all tables, replaced by a skewed function of themselves."""
    if not chance(0.5, generator):
        return inputs
    skewed = torch.rand(inputs.shape[1], generator=generator) < 0.2
    return torch.where(skewed, torch.exp(inputs.clamp(-4, 4)), inputs)
