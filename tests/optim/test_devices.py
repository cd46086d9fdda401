"""State and rule live where the parameters do. The meta device stands in for an accelerator: it mixes with no other."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, SGDRule

RULES = [SGDRule, AdamRule, ResidualRule]


def tensors_of(optimizer):
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return [leaf for leaf in tree_leaves([groups, list(optimizer.state.values())]) if isinstance(leaf, torch.Tensor)]


def model(device, dtype=torch.float32):
    net = nn.Sequential(nn.Embedding(9, 4), nn.Conv1d(4, 4, 2), nn.LayerNorm(8), nn.Linear(8, 2))
    return net.to(device=device, dtype=dtype)


def steps(net, optimizer, count=3):
    for _ in range(count):
        for param in net.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_everything_is_on_the_device_of_the_parameters(rule, dtype):
    """Also a step reads no value back: there are none on the meta device, so ``.item()`` would raise."""
    net = model("meta", dtype)
    optimizer = LearnedOptimizer(net, rule(), total_steps=9)
    steps(net, optimizer)
    assert all(value.is_meta for value in [*tensors_of(optimizer), *optimizer.rule.parameters()])
    assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_goes_to_the_device_of_the_parameters(rule):
    net = model("cpu")
    trained = LearnedOptimizer(net, rule(), total_steps=9)
    steps(net, trained)
    optimizer = LearnedOptimizer(model("meta"), rule(), total_steps=9)
    optimizer.load_state_dict(trained.state_dict())
    assert optimizer.calls == 3
    assert len(optimizer.state) == 7
    assert all(value.is_meta for value in [*tensors_of(optimizer), *optimizer.rule.parameters()])


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_on_a_gpu_no_step_waits_and_a_model_may_move_on(rule):
    net = model("cuda")
    optimizer = LearnedOptimizer(net, rule(), total_steps=9)
    steps(net, optimizer, 1)
    loss = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    net.cpu()
    for param in net.parameters():
        optimizer.state[param] = {key: value.cpu() for key, value in optimizer.state[param].items()}
    steps(net, optimizer, 1)
    assert all(value.device.type == "cpu" for value in [*tensors_of(optimizer), *optimizer.rule.parameters()])
