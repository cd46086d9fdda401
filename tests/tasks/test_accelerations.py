"""What makes the steps of a task faster belongs to the code it is about, and is not inherited with other code."""

import pytest
import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic, Task
from lightning_lopt.tasks.accelerations import computation_of, draws_in_one_call
from lightning_lopt.tasks.image_mlp import ImageMLPTask
from lightning_lopt.tasks.transforms import (
    ChangingDataTask,
    LowPrecisionTask,
    NoisyGradientTask,
    ReparametrisedTask,
    SmallerBatchTask,
)


@pytest.fixture
def mlp(blobs):
    return ImageMLP(blobs, depths=(1,), widths=(8,), batch_sizes=(16,), variety=False).sample(generator(0))


def test_only_numbers_of_examples_are_drawn_for_several_steps_in_one_call(mlp):
    class Noisy(ImageMLPTask):
        def draw(self, generator, *lead, split="train"):
            drawn = super().draw(generator, *lead, split=split)
            return drawn | {"noise": torch.randn(*drawn["index"].shape, 1, generator=generator)}

    noisy = object.__new__(Noisy)
    noisy.__dict__ = mlp.__dict__
    bowl = Quadratic(torch.ones(2))
    for task, expected in ((mlp, True), (noisy, False), (bowl, False)):
        assert draws_in_one_call(task) == expected
        assert draws_in_one_call(LowPrecisionTask(task, "int8")) == expected
    for transformed in (SmallerBatchTask(mlp, 5), NoisyGradientTask(mlp, 0.1), ChangingDataTask(mlp, mlp, 2)):
        assert not draws_in_one_call(transformed)


def test_computations_are_those_of_one_class_alone(mlp):
    class Squared(ImageMLPTask):
        def loss(self, params, batch):
            return super().loss(params, batch).square()

    squared = object.__new__(Squared)
    squared.__dict__ = mlp.__dict__
    assert computation_of(mlp) == computation_of(mlp) is not None
    assert computation_of(squared) is None
    first, second = (computation_of(ReparametrisedTask(mlp, scale)) for scale in (0.1, 10.0))
    assert first == second is not None
    assert first != computation_of(mlp)
    assert computation_of(LowPrecisionTask(mlp, "int8")) is None
    assert computation_of(ReparametrisedTask(squared, 2.0)) is None


def test_a_task_that_draws_nothing_cannot_be_built():
    class OnlyBatch(Task):
        def init(self, generator):
            return {}

        def full_batch(self, split):
            return {}

        def loss(self, params, batch):
            return torch.zeros(())

    with pytest.raises(TypeError, match="draw"):
        OnlyBatch()
