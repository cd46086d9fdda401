"""The suite ``small``: small models of many kinds with 200 to 500 steps; a run takes seconds on a CPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.images import attention_and_residual, deep, language_models, shallow
from lightning_lopt.evaluation.suites.sources import halves, small_images
from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    ImageAutoencoderTask,
    ImageMixerTask,
    ImageMLPTask,
    ImageVAETask,
    LabelledImages,
    TabularTask,
    Task,
    load_table,
)
from lightning_lopt.tasks.synthetic_tables import draw_class_table
from lightning_lopt.tasks.transforms import GivenStartTask

START_STEPS, START_RATE, START_EXAMPLES = 150, 0.3, 1000
DECADES = 6  # ratio of the largest and the smallest column of the badly scaled table, in decades


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """Nine problems on each set of images, two language models, and three tables."""
    on_images = [problem for source in sources for problem in _on_images(small_images(source))]
    return [*on_images, *language_models(), *_tables()]


def _on_images(data: LabelledImages) -> list[Problem]:
    parts, label = halves(data), data.name
    mixer = ImageMixerTask(*parts, width=16, batch_size=32)
    autoencoder, vae = ImageAutoencoderTask(*parts, batch_size=32), ImageVAETask(*parts, batch_size=32)
    return [
        *shallow(data),
        *attention_and_residual(data),
        Problem(f"{label}-mixer", mixer, 300, "image_mixer", label),
        Problem(f"{label}-autoencoder", autoencoder, 500, "image_autoencoder", label),
        Problem(f"{label}-vae", vae, 500, "image_vae", label),
        deep(data),
        Problem(f"{label}-finetune", fine_tuning(*parts), 200, "", label),
    ]


def fine_tuning(train: LabelledImages, valid: LabelledImages) -> Task:
    """A perceptron with a body that was trained on the first half of the classes, and a new head for all classes."""
    half = train.classes // 2
    pretraining = ImageMLPTask(_below(train, half), _below(valid, half), (64, 64), "gelu")
    task = ImageMLPTask(train, valid, (64, 64), "gelu", batch_size=32)
    head = f"layers.{task.layers - 1}."
    return GivenStartTask(task, {k: value for k, value in _trained(pretraining).items() if not k.startswith(head)})


def _below(data: LabelledImages, classes: int) -> LabelledImages:
    """The images of the first ``classes`` classes."""
    return replace(data.take(torch.nonzero(data.targets < classes).squeeze(1)), classes=classes)


def _trained(task: ImageMLPTask) -> Params:
    """Parameters after some steps of gradient descent; they are the same on every machine up to rounding.

    Rounding errors stay small, because batches are whole, steps are not adaptive and the activation is smooth.
    """
    batch = {name: value[:START_EXAMPLES] for name, value in task.full_batch("train").items()}
    params = task.init(generator(0, "pretraining"))
    for _ in range(START_STEPS):
        grads, _, _ = task.gradient(params, batch)
        params = {name: value - START_RATE * grads[name] for name, value in params.items()}
    return params


def _tables() -> list[Problem]:
    """Classes of a real table, values of another real table, and classes of a table with badly scaled columns."""
    cancer = load_table("breast_cancer").split(0.2, generator(0, "split"), None)
    diabetes = load_table("diabetes").split(0.2, generator(0, "split"), None)
    synthetic = draw_class_table(generator(0, "scaled")).split(0.2, generator(0, "split"), None)
    columns = synthetic[0].inputs.shape[1]
    powers = torch.linspace(-DECADES / 2, DECADES / 2, columns)[
        torch.randperm(columns, generator=generator(0, "order"))
    ]
    train, valid = (replace(part, inputs=part.inputs * 10**powers) for part in synthetic)
    scaled = TabularTask(train, valid, (32, 32), "cross_entropy")
    classes, values = "tabular_classification", "tabular_regression"
    return [
        Problem("cancer", TabularTask(*cancer, (32, 32), "cross_entropy"), 300, classes, "breast_cancer"),
        Problem("diabetes", TabularTask(*diabetes, (32, 32), "squared"), 300, values, "diabetes"),
        Problem("badly-scaled", scaled, 500, classes, "synthetic"),
    ]
