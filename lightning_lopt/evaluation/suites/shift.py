"""The suite ``shift``: common difficulties of training on small networks; each problem has one difficulty."""

from __future__ import annotations

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.sources import halves, small_images
from lightning_lopt.tasks import ImageCNNTask, ImageMLPTask, LabelledImages, Task, Variety
from lightning_lopt.tasks.transforms import ChangingDataTask, FrozenTask, HeavyTailedGradientTask


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """Eight problems on each set of images: noisy labels, tiny and huge batches, heavy-tailed gradients, too large and
    too small initial weights, a half-frozen network, and data that change during the run."""
    return [problem for source in sources for problem in _shifts(small_images(source))]


def _shifts(data: LabelledImages) -> list[Problem]:
    parts, label = halves(data), data.name
    noisy = Variety(seed=1, classes=data.classes, label_noise=0.4).apply(data.standardised(), 0.2, 1000)
    huge = min(1024, len(parts[0]))
    plain = ImageMLPTask(*parts, (64, 64), batch_size=32)
    deeper = ImageMLPTask(*parts, (64, 64, 64), batch_size=32)
    first_half = list(deeper.roles)[: len(deeper.roles) // 2]
    tasks: list[tuple[str, Task, int, str]] = [
        ("noisy-labels", ImageCNNTask(*noisy, (8, 16), batch_size=32), 300, "image_cnn"),
        ("tiny-batches", ImageMLPTask(*parts, (64,), batch_size=2), 500, "image_mlp"),
        ("huge-batches", ImageMLPTask(*parts, (32, 32), batch_size=huge), 150, "image_mlp"),
        ("heavy-tails", HeavyTailedGradientTask(plain, level=1.0, tail=1.5), 300, "image_mlp"),
        ("large-weights", ImageMLPTask(*parts, (64, 64, 64), batch_size=32, init_scale=5.0), 300, "image_mlp"),
        ("small-weights", ImageMLPTask(*parts, (64, 64, 64), batch_size=32, init_scale=0.1), 300, "image_mlp"),
        ("frozen-half", FrozenTask(deeper, first_half), 300, "image_mlp"),
        ("changed-data", _changing(data, 400), 400, "image_mlp"),
    ]
    return [Problem(f"{label}-{name}", task, steps, family, label) for name, task, steps, family in tasks]


def _changing(data: LabelledImages, horizon: int) -> Task:
    """A perceptron whose images are inverted, with permuted pixels, for the first half of the run."""
    splits = {}
    for is_changed in (False, True):
        variety = Variety(seed=2, classes=data.classes, permuted=is_changed, inverted=is_changed)
        splits[is_changed] = variety.apply(data.standardised(), 0.2, 1000)
    plain_task, changed_task = (
        ImageMLPTask(*splits[is_changed], (64, 64), batch_size=32) for is_changed in (False, True)
    )
    return ChangingDataTask(plain_task, changed_task, horizon // 2)
