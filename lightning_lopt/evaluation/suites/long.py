"""The suite ``long``: runs of 10,000 and 25,000 steps, longer than all runs in the embedded rule's meta-training."""

from __future__ import annotations

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.sources import VOCABULARY, excerpt, small_images
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import CharTransformerTask, ImageMLPTask, LabelledImages, TabularTask, Task, Variety
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.synthetic_tables import draw_value_table
from lightning_lopt.tasks.tabular import with_noise

STEPS, MORE_STEPS = 10_000, 25_000


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """Two small problems and a language model with 10,000 steps, and a regression with 25,000 steps."""
    return [*long_runs(STEPS, sources), language_model(STEPS), regression(MORE_STEPS)]


def long_runs(horizon: int, data: DataLike | None = None) -> list[Problem]:
    """Very small problems whose loss falls for a long time: noisy labels on images, and values of a table.

    Args:
        horizon: inner steps of each problem.
        data: images, as for :func:`~lightning_lopt.evaluation.suites.make_suite`; there is one problem on each set.

    >>> [problem.name for problem in long_runs(100)]
    ['digits-noisy-100', 'synthetic-values-100']
    """
    noisy = [
        Problem(f"{source.name}-noisy-{horizon}", noisy_labels(source, 0.2), horizon, "image_mlp", source.name)
        for source in resolve(data)
    ]
    return [*noisy, regression(horizon)]


def noisy_labels(data: LabelledImages, share: float) -> Task:
    """A small perceptron on images with a share of wrong labels."""
    variety = Variety(seed=0, classes=data.classes, label_noise=share)
    train, valid = variety.apply(small_images(data).standardised(), 0.2, 1000)
    return ImageMLPTask(train, valid, (16,), "gelu", batch_size=16)


def language_model(horizon: int, index: int = 0) -> Problem:
    """A very small transformer on characters, in small batches; the suite has the source of index 0."""
    name, train, valid = excerpt(index)
    task = CharTransformerTask(train, valid, VOCABULARY, width=16, depth=1, length=8, batch_size=4)
    return Problem(f"{name}-transformer-{horizon}", task, horizon, "char_transformer", name)


def regression(horizon: int, seed: int = 0) -> Problem:
    """A small perceptron that predicts values of a synthetic table, in small batches; the suite has seed 0."""
    table = draw_value_table(generator(seed, "long"))
    train, valid = table.split(0.2, generator(seed, "split"), 512)
    train = with_noise(train, 0.1, generator(seed, "noise"))  # noise makes small steps at the end lower the loss
    task = TabularTask(train, valid, (16, 16), "squared", batch_size=16)
    name = f"synthetic-values-{horizon}" + (f"-{seed}" if seed else "")
    return Problem(name, task, horizon, "tabular_regression", "synthetic")
