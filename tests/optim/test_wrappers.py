"""Wrappers that copy the attributes of an optimizer, as those of Fabric and Lightning: what is told to them holds."""

import pytest
import torch
from lightning.fabric.wrappers import _FabricOptimizer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule, ScheduleFreeAdamRule

WRAPPERS = {
    "Fabric": lambda optimizer: _FabricOptimizer(optimizer, strategy=None),
    "Lightning": LightningOptimizer,
}


def wrapped_optimizer(wrap, rule):
    weight = nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([weight], rule, total_steps=10)
    return weight, optimizer, wrap(optimizer)


def step(optimizer, weight):
    weight.grad = weight.detach().clone()
    optimizer.step(1.0)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_horizon_that_a_wrapper_is_told_holds(wrap):
    weight, optimizer, wrapper = wrapped_optimizer(wrap, ResidualRule(controller=False))
    for _ in range(5):
        step(optimizer, weight)
    assert wrapper.calls == 5
    wrapper.set_horizon(20)
    assert optimizer.total_steps == wrapper.total_steps == 20
    assert torch.equal(optimizer.param_groups[0]["schedule"], torch.tensor([5.0, 0.5]))
    wrapper.set_loss(0.5)
    assert float(optimizer.signals.user_loss) == 0.5


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_eval_through_a_wrapper_is_known_to_the_optimizer(wrap):
    weight, optimizer, wrapper = wrapped_optimizer(wrap, ScheduleFreeAdamRule())
    for _ in range(3):
        step(optimizer, weight)
    trained = weight.detach().clone()
    wrapper.eval()
    assert optimizer.is_in_eval
    assert not torch.equal(weight, trained)
    with pytest.raises(RuntimeError, match="after eval"):
        optimizer.step(1.0)
    optimizer.train()
    assert not wrapper.is_in_eval
    assert torch.equal(weight, trained)
