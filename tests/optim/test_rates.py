"""Learning rates of groups: what is remembered of a step is the step that was made."""

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, load_rule


def run(rates, steps=30, **options):
    """Four layers of one shape with the rate of each, a bowl for each; the layers and their optimizer after a run."""
    torch.manual_seed(0)
    layers = [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(4)]
    groups = [{"params": [layer], "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    optimizer = LearnedOptimizer(groups, load_rule("base"), total_steps=steps, compile=False, **options)
    targets = [torch.randn(4, 3, dtype=torch.float64) for _ in range(4)]
    for _ in range(steps):
        optimizer.zero_grad()
        before = [layer.detach().clone() for layer in layers]
        sum((layer - target).square().sum() for layer, target in zip(layers, targets, strict=True)).backward()
        optimizer.step()
    return layers, before, optimizer


@pytest.mark.parametrize("rates", [(1.0, 0.5, 0.01, 0.0), (0.5, 0.5, 0.5, 0.5)])
def test_the_last_update_is_what_was_added(rates):
    layers, before, optimizer = run(rates)
    for layer, old in zip(layers, before, strict=True):
        torch.testing.assert_close(optimizer.state[layer]["last_update"], layer.detach() - old, rtol=1e-9, atol=1e-12)


def test_a_tensor_alone_as_well():
    layer = nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    optimizer = LearnedOptimizer([layer], load_rule("base"), lr=0.25, total_steps=10)
    layer.grad = torch.arange(12, dtype=torch.float64).view(4, 3)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[layer]["last_update"], layer.detach() - 1, rtol=1e-9, atol=1e-12)


def test_tensors_at_rate_0_promise_nothing():
    """With the rate of a group at 0 the calibration of the others is the one of a gradient of 0 there."""
    _, _, still = run((1.0, 1.0, 0.0, 0.0))
    torch.manual_seed(0)
    layers = [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(4)]
    targets = [torch.randn(4, 3, dtype=torch.float64) for _ in range(4)]
    optimizer = LearnedOptimizer(layers, load_rule("base"), total_steps=30, compile=False)
    for _ in range(30):
        optimizer.zero_grad()
        sum((layer - target).square().sum() for layer, target in zip(layers, targets, strict=True)).backward()
        for layer in layers[2:]:
            layer.grad.zero_()
        optimizer.step()
    torch.testing.assert_close(
        still.param_groups[0]["shared"]["calibration"], optimizer.param_groups[0]["shared"]["calibration"]
    )


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_one_rate_for_all_leaves_the_factors_of_the_run_as_they_are(rate):
    """Promises are compared with promises, so a constant rate cancels where gradients do not depend on the steps, up to
    weight decay, which does."""
    ends = []
    for lr in (1.0, rate):
        torch.manual_seed(0)
        layer = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        slope = torch.randn(4, 3, dtype=torch.float64)
        optimizer = LearnedOptimizer([layer], load_rule("base"), lr=lr, total_steps=100)
        for _ in range(20):
            layer.grad = slope.clone()
            optimizer.step()
        ends.append(optimizer.param_groups[0]["shared"]["calibration"])
    torch.testing.assert_close(ends[1], ends[0] * torch.tensor([1.0, rate]).to(ends[0]), rtol=0.1, atol=0.0)


def test_state_of_several_tensors_and_of_one():
    rule, update = load_rule("base"), torch.randn(3, 2)
    after = rule.at_rates({"last_update": update, "log_factor": torch.ones(())}, [0.5])
    assert torch.equal(after["last_update"], 0.5 * update)
    assert torch.equal(after["log_factor"], torch.ones(()))
    both = rule.at_rates({"last_update": torch.stack([update, update])}, [0.5, torch.tensor(2.0)])
    assert torch.equal(both["last_update"], torch.stack([0.5 * update, 2 * update]))
