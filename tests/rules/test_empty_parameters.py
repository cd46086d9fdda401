"""A parameter without entries changes nothing, for any rule, and has no state."""

import pytest
import torch
from rule_catalogue import cases
from torch import nn

from lightning_lopt import LearnedOptimizer


def trained(rule, more=()):
    """A matrix and a vector after four steps, beside ``more`` parameters."""
    draws = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draws)) for shape in [(4, 3), (3,)]]
    optimizer = LearnedOptimizer([*params, *more], rule, total_steps=9)
    for step in range(4):
        for param in (*params, *more):
            param.grad = torch.randn(param.shape, generator=draws)
        optimizer.step(1.0 / (step + 1))
    return params, optimizer


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0)], ids=str)
@pytest.mark.parametrize("entry", cases())
def test_an_empty_parameter_changes_nothing(entry, shape):
    rule, empty = entry.rule().float(), nn.Parameter(torch.zeros(shape))
    params, optimizer = trained(rule, [empty])
    for value, expected in zip(params, trained(rule)[0], strict=True):
        assert torch.equal(value, expected)
    assert empty not in optimizer.state
    resumed = LearnedOptimizer([*params, empty], rule, total_steps=9)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.steps_made == 4
