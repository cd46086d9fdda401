"""``torch.compile`` of a step, both ways: the rule alone, or the whole of ``LearnedOptimizer.step``."""

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule, SGDRule
from lightning_lopt.rules import RULES

OURS = {name: rule for name, rule in sorted(RULES.items()) if rule.__module__.startswith("lightning_lopt.")}


def trained(build, way, **how):
    """Parameters after three steps with a rule that is compiled, or not."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, rule = nn.Linear(5, 4), build()
    optimizer = LearnedOptimizer(module, rule, total_steps=5)
    step = torch.compile(optimizer.step, **how) if way == "step" else optimizer.step
    if way == "rule":
        rule.compile(fullgraph=True, **how)
    for _ in range(3):
        optimizer.zero_grad()
        loss = module(torch.ones(2, 5)).square().sum()
        loss.backward()
        step(loss=loss)
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize(("build", "way"), [(SGDRule, "step"), (SGDRule, "rule"), (ResidualRule, "rule")])
def test_traced_steps_are_the_same_bits(build, way):
    for traced, plain in zip(trained(build, way, backend="eager"), trained(build, None), strict=True):
        assert torch.equal(traced, plain)


@pytest.mark.parametrize("way", ["rule", "step"])
def test_full_steps(way):
    """Compiled, the rule has a graph for each kind; the whole of a step is full wherever the count stands."""
    torch._dynamo.reset()
    graphs = []

    class Marked(SGDRule):
        period = 3

        def forward(self, params, grads, state, context):
            updates, state = super().forward(params, grads, state, context)
            return {name: update.sin() if context.full else update.cos() for name, update in updates.items()}, state

    def backend(module, inputs):
        graphs.append("sin" in module.code)
        return module.forward

    weight, rule = nn.Parameter(torch.zeros(2)), Marked()
    optimizer = LearnedOptimizer([weight], rule)
    weight.grad = torch.ones(2)
    optimizer.step()
    if way == "rule":
        rule.compile(fullgraph=True, backend=backend)
    step = torch.compile(optimizer.step, backend=backend) if way == "step" else optimizer.step
    for _ in range(5):
        step()
    assert graphs == [False, True] if way == "rule" else set(graphs) == {True}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rule", "step"])
@pytest.mark.parametrize("name", OURS)
def test_steps_compiled_by_inductor(name, way):
    for compiled, plain in zip(trained(OURS[name], way), trained(OURS[name], None), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
