"""Hugging Face Accelerate: the printed recipes give what a plain loop gives."""

import pytest
import torch
from recipes import STEPS, assert_equal, data, docstring_blocks, model, page_blocks, plain
from torch import nn

from lightning_lopt import LearnedOptimizer

accelerate = pytest.importorskip("accelerate", reason="needs lightning_lopt[interop]: accelerate is not installed")


@pytest.fixture
def accelerator():
    """A function that makes an ``Accelerator``, whose state is shared by all of a process, anew."""

    def make(**settings):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        return accelerate.Accelerator(cpu=True, **settings)

    yield make
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize("accumulated", [1, 4], ids=["page", "docstring"])
def test_the_recipe(accelerator, accumulated):
    code = page_blocks()[1] if accumulated == 1 else docstring_blocks()[1]
    names = {"accelerator": accelerator(), "Accelerator": accelerator, "LearnedOptimizer": LearnedOptimizer}
    names |= {"model": model(), "data": data(STEPS * accumulated), "loss_function": nn.functional.mse_loss}
    exec(compile(code, "recipe", "exec"), names)
    expected, _ = plain(model(), list(data(STEPS * accumulated)), accumulated)
    assert_equal(names["model"], expected)
    assert names["learned"].steps_made == STEPS


@pytest.mark.parametrize("way", ["set_loss", "step(loss)", "step(lambda: loss)"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_way_in(accelerator, way, precision):
    runner = accelerator(mixed_precision=precision)
    learned = LearnedOptimizer(net := model(), total_steps=STEPS)
    net, optimizer, batches = runner.prepare(net, learned, data(STEPS))
    for x, y in batches:
        with runner.autocast():
            loss = nn.functional.mse_loss(net(x), y)
        runner.backward(loss)
        if way == "set_loss":
            learned.set_loss(loss.detach())
        optimizer.step(*{"set_loss": [], "step(loss)": [loss], "step(lambda: loss)": [lambda value=loss: value]}[way])
        optimizer.zero_grad()
    expected, _ = plain(model(), list(data(STEPS)), dtype=torch.bfloat16 if precision == "bf16" else None)
    assert_equal(net, expected)
    assert learned.steps_made == STEPS


def test_a_saved_state_resumes(accelerator, tmp_path):
    def fit(path, first, last, load=False):
        runner = accelerator()
        learned = LearnedOptimizer(net := model(), total_steps=STEPS)
        net, optimizer = runner.prepare(net, learned)
        if load:
            runner.load_state(path)
        for x, y in list(data(STEPS))[first:last]:
            loss = nn.functional.mse_loss(net(x), y)
            runner.backward(loss)
            optimizer.step(loss)
            optimizer.zero_grad()
        runner.save_state(path)
        return [param.detach().clone() for param in net.parameters()]

    fit(tmp_path / "half", 0, STEPS // 2)
    resumed = fit(tmp_path / "half", STEPS // 2, STEPS, load=True)
    for value, straight in zip(resumed, fit(tmp_path / "whole", 0, STEPS), strict=True):
        assert torch.equal(value, straight)
