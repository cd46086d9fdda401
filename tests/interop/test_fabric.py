"""Lightning Fabric: the printed recipes give what a plain loop gives."""

import warnings

import pytest
import torch
from lightning.fabric import Fabric
from recipes import STEPS, assert_equal, data, docstring_blocks, model, page_blocks, plain
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule


def fabric(**settings):
    return Fabric(accelerator="cpu", devices=1, **settings)


def namespace(batches):
    names = {"fabric": fabric(), "model": model(), "data": data(batches), "loss_function": nn.functional.mse_loss}
    return names | {"LearnedOptimizer": LearnedOptimizer}


@pytest.mark.parametrize("accumulated", [1, 4], ids=["page", "docstring"])
def test_the_recipe(accumulated):
    code = page_blocks()[0] if accumulated == 1 else docstring_blocks()[0]
    names = namespace(STEPS * accumulated)
    exec(compile(code, "recipe", "exec"), names)
    expected, _ = plain(model(), list(data(STEPS * accumulated)), accumulated)
    assert_equal(names["model"], expected)
    assert names["optimizer"].optimizer.steps_made == STEPS


@pytest.mark.parametrize("way", ["set_loss", "step(loss)", "step(lambda: loss)"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_way_in(way, precision):
    runner = fabric(precision=precision)
    original = LearnedOptimizer(net := model(), total_steps=STEPS)
    net, optimizer = runner.setup(net, original)
    for x, y in data(STEPS):
        loss = nn.functional.mse_loss(net(x), y)
        runner.backward(loss)
        if way == "set_loss":
            optimizer.set_loss(loss.detach())
        optimizer.step(*{"set_loss": [], "step(loss)": [loss], "step(lambda: loss)": [lambda value=loss: value]}[way])
        optimizer.zero_grad()
    expected, _ = plain(model(), list(data(STEPS)), dtype=torch.bfloat16 if precision == "bf16-mixed" else None)
    assert_equal(net, expected)
    assert original.steps_made == STEPS


def test_without_a_loss_the_way_in_is_named():
    """By an error or, from a rule that can do without, by a warning."""
    runner = fabric()
    net, optimizer = runner.setup(net := model(), LearnedOptimizer(net, ResidualRule(), total_steps=STEPS))
    runner.backward(net(torch.ones(4, 5)).sum())
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            optimizer.step()
        except ValueError as error:
            said.append(str(error))
    said += [str(warning.message) for warning in caught]
    assert any("set_loss(loss)" in text for text in said)


def test_a_checkpoint_of_fabric_resumes(tmp_path):
    def fit(path, first, last, load=False):
        runner = fabric()
        net, optimizer = runner.setup(net := model(), LearnedOptimizer(net, total_steps=STEPS))
        if load:
            runner.load(path, {"model": net, "optimizer": optimizer})
        for x, y in list(data(STEPS))[first:last]:
            loss = nn.functional.mse_loss(net(x), y)
            runner.backward(loss)
            optimizer.step(loss)
            optimizer.zero_grad()
        runner.save(path, {"model": net, "optimizer": optimizer})
        return [param.detach().clone() for param in net.parameters()]

    fit(tmp_path / "half", 0, STEPS // 2)
    resumed = fit(tmp_path / "half", STEPS // 2, STEPS, load=True)
    for value, straight in zip(resumed, fit(tmp_path / "whole", 0, STEPS), strict=True):
        assert torch.equal(value, straight)
