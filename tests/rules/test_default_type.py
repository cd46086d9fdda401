"""Under ``precision="16-true"`` and ``"bf16-true"`` half precision is the default type of torch; no step heeds it."""

import pytest
import torch
from rule_catalogue import builders
from test_default_dtype import default

from lightning_lopt import LearnedOptimizer

RULES = builders()


def trained(rule, dtype):
    """Parameters and state after a few steps, with ``dtype`` as the default while they are made."""
    draws = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=draws)) for shape in [(4, 3), (3,), ()]]
    grads = [[torch.randn(param.shape, generator=draws) for param in params] for _ in range(4)]
    optimizer = LearnedOptimizer(params, rule, total_steps=70_000, weight_decay=0.01)  # infinite in float16
    for step, drawn in enumerate(grads):
        for param, grad in zip(params, drawn, strict=True):
            param.grad = grad
        with default(dtype):
            optimizer.step(1.0 / (step + 3))
    state = [value for tensors in optimizer.state.values() for value in tensors.values()]
    return [*(param.detach() for param in params), *state, *optimizer.param_groups[0]["shared"].values()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("build", RULES)
def test_the_default_type_changes_nothing(build, dtype):
    rule = build().float()
    for value, expected in zip(trained(rule, dtype), trained(rule, torch.float32), strict=True):
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)
