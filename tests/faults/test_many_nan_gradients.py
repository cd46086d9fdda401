"""Ten thousand steps in which gradients are not finite at random."""

import random
import warnings

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer

STEPS = 10_000
BAD = [float("nan"), float("inf"), float("-inf")]


def train(rule, share, steps=STEPS):
    """Least squares with noise; the optimizer, the number of bad gradients, and the excess losses, first and last."""
    torch.manual_seed(0)
    draws, python_draws = torch.Generator().manual_seed(0), random.Random(0)
    model, teacher = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), torch.randn(2, 6)
    optimizer = LearnedOptimizer(model, rule, total_steps=steps)
    parameters, injected = list(model.parameters()), 0
    inputs = torch.randn(256, 6, generator=draws)

    def excess():
        return float((model(inputs) - inputs @ teacher.mT).square().mean().detach())

    first = excess()
    for _ in range(steps):
        chosen = torch.randint(256, (16,), generator=draws)
        loss = (model(inputs[chosen]) - inputs[chosen] @ teacher.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if python_draws.random() < share:
            entries = python_draws.choice(parameters).grad.view(-1)
            entries[python_draws.randrange(len(entries))] = python_draws.choice(BAD)
            injected += 1
        optimizer.step(loss=loss.detach())
    return optimizer, injected, first, excess()


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "share"), [("base", 0.1), ("adam", 0.5)])
def test_they_are_skipped_and_counted_and_training_goes_on(rule, share):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so many are skipped is said, too
        optimizer, injected, first, last = train("base" if rule == "base" else AdamRule(0.01, schedule="cosine"), share)
    group = optimizer.param_groups[0]
    assert optimizer.skipped_steps == injected > 0.9 * share * STEPS
    assert int(group["step"]) == STEPS - injected
    assert all(bool(parameter.isfinite().all()) for parameter in group["params"])
    assert all(bool(value.isfinite().all()) for state in optimizer.state.values() for value in state.values())
    assert all(bool(value.isfinite().all()) for value in group["shared"].values())
    assert last < 1e-3 * first
