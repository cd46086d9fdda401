"""The suite ``long``: runs 10 and 25 times as long as any that the embedded rule was meta-trained on."""

from __future__ import annotations

from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.suites.sources import VOCABULARY, excerpt, small_images
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import CharTransformerTask, ImageMLPTask, LabelledImages, TabularTask, Task, Variety
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.synthetic_tables import draw_value_table
from lightning_lopt.tasks.tabular import with_noise

TRAINED = 1000
"""The longest horizon in the meta-training of the embedded rule."""


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """Two small problems and a language model at 10 times that horizon, a regression at 25 times."""
    name, train, valid = excerpt()
    transformer = CharTransformerTask(train, valid, VOCABULARY, width=16, depth=1, length=8, batch_size=4)
    steps = 10 * TRAINED
    return [
        *long_runs(steps, sources),
        Problem(f"{name}-transformer-{steps}", transformer, steps, "char_transformer", name),
        _regression(25 * TRAINED),
    ]


def long_runs(horizon: int, data: DataLike | None = None) -> list[Problem]:
    """Very small problems that are not solved for a long time: noisy labels on images, and values of a table.

    Args:
        horizon: inner steps of each.
        data: images, as for :func:`~lightning_lopt.evaluation.suites.make_suite`; one problem on each set.
    """
    noisy = [
        Problem(f"{source.name}-noisy-{horizon}", noisy_labels(source, 0.2), horizon, "image_mlp", source.name)
        for source in resolve(data)
    ]
    return [*noisy, _regression(horizon)]


def noisy_labels(data: LabelledImages, share: float) -> Task:
    """A small perceptron on images with a share of wrong labels."""
    variety = Variety(seed=0, classes=data.classes, label_noise=share)
    train, valid = variety.apply(small_images(data).standardised(), 0.2, 1000)
    return ImageMLPTask(train, valid, (16,), "gelu", batch_size=16)


def _regression(horizon: int) -> Problem:
    """Values of a synthetic table by a small perceptron, in small batches."""
    table = draw_value_table(generator(0, "long"))
    train, valid = table.split(0.2, generator(0, "split"), 512)
    train = with_noise(train, 0.1, generator(0, "noise"))  # so that small steps at the end pay
    task = TabularTask(train, valid, (16, 16), "squared", batch_size=16)
    return Problem(f"synthetic-values-{horizon}", task, horizon, "tabular_regression", "synthetic")
