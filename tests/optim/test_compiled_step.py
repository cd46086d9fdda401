"""``torch.compile`` of the whole of ``LearnedOptimizer.step``."""

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule, SGDRule
from lightning_lopt.rules import RULES

OURS = {name: rule for name, rule in sorted(RULES.items()) if rule.__module__.startswith("lightning_lopt.")}


def trained(build, compiled, **how):
    """Parameters after three steps that are compiled, or not."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = nn.Linear(5, 4)
    optimizer = LearnedOptimizer(module, build(), total_steps=5)
    step = torch.compile(optimizer.step, **how) if compiled else optimizer.step
    for _ in range(3):
        optimizer.zero_grad()
        loss = module(torch.ones(2, 5)).square().sum()
        loss.backward()
        step(loss=loss)
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("build", [SGDRule, pytest.param(ResidualRule, marks=pytest.mark.slow)])
def test_traced_steps_are_the_same_bits(build):
    for traced, plain in zip(trained(build, True, backend="eager"), trained(build, False), strict=True):
        assert torch.equal(traced, plain)


def test_all_work_is_done_at_every_step():
    """Compiled, the count stands still."""
    torch._dynamo.reset()
    codes = []

    class Marked(SGDRule):
        period = 3

        def step(self, inputs, controls, at):
            update, state = super().step(inputs, controls, at)
            return update.sin() if inputs.full else update.cos(), state

    def backend(module, inputs):
        codes.append(module.code)
        return module.forward

    weight = nn.Parameter(torch.zeros(2))
    optimizer = LearnedOptimizer([weight], Marked())
    weight.grad = torch.ones(2)
    optimizer.step()
    step = torch.compile(optimizer.step, backend=backend)
    for _ in range(5):
        step()
    assert "sin" in "".join(codes)
    assert "cos" not in "".join(codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_steps_compiled_by_inductor(name):
    for compiled, plain in zip(trained(OURS[name], True), trained(OURS[name], False), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
