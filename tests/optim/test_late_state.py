"""The state of a parameter begins with its first gradient: what is done to parameters before that does not matter."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, load_rule


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def train(net, optimizer, steps=8, first=0):
    param = next(net.parameters())
    for step in range(first, first + steps):
        draws = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 5, generator=draws).to(param.dtype), torch.randint(3, (16,), generator=draws)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step(loss)
    return [param.detach().clone() for param in net.parameters()]


def optimizer_for(params, **options):
    return LearnedOptimizer(params, load_rule("base"), total_steps=20, **options)


def assert_same(ends, others):
    for end, other in zip(ends, others, strict=True):
        assert torch.equal(end, other)


def emptied(net):
    for param in net.parameters():
        param.data.fill_(float("nan"))


LATE = {
    "loaded": lambda net, weights: net.load_state_dict(weights),
    "loaded into float64": lambda net, weights: net.double().load_state_dict(weights),
    "initialised": lambda net, weights: [p.data.copy_(weights[name]) for name, p in net.named_parameters()],
}


@pytest.mark.parametrize("change", LATE.values(), ids=LATE)
def test_weights_that_come_after_the_optimizer_are_those_that_count(change):
    """Parameters hold NaN while the optimizer is built, as those of ``empty_init`` may."""
    weights = model().state_dict()
    early = model()
    change(early, weights)
    expected = train(early, optimizer_for(early))
    late = model(1)
    emptied(late)
    optimizer = optimizer_for(late)
    change(late, weights)
    assert_same(train(late, optimizer), expected)
    assert optimizer.skipped_steps == 0


def test_lazy_layers_are_trained_once_they_have_a_shape():
    lazy = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))
    optimizer = optimizer_for(lazy)
    assert "unknown" in optimizer.role_table()
    by_tensor = LearnedOptimizer(lazy.parameters(), AdamRule())
    lazy(torch.zeros(1, 5))
    lazy.load_state_dict(model().state_dict())
    ready = model()
    assert_same(train(lazy, optimizer), train(ready, optimizer_for(ready)))
    assert [line.split()[1:] for line in optimizer.role_table().splitlines()[1:]] == [
        ["8x5", "matrix"],
        ["8", "vector"],
        ["3x8", "head"],
        ["3", "vector"],
    ]
    train(lazy, by_tensor)
    assert by_tensor.role_table().count("matrix") == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_frozen_tensors_cost_nothing_and_may_be_of_any_type(dtype):
    net = model()
    net[0].requires_grad_(False)
    packed = nn.Parameter(torch.ones(64).to(dtype), requires_grad=False)
    optimizer = optimizer_for([packed, *net.parameters()])
    before = [param.clone() for param in (*net[0].parameters(), packed)]
    train(net, optimizer)
    assert set(optimizer.state) == set(net[2].parameters())
    assert_same([*net[0].parameters(), packed], before)


def test_state_that_was_cleared_or_whose_tensor_was_replaced_begins_anew():
    net = model()
    optimizer = optimizer_for(net)
    train(net, optimizer)
    del optimizer.state[net[0].weight]
    optimizer.state[net[0].bias].clear()
    net[2].weight = nn.Parameter(net[2].weight.detach() * 2)
    optimizer.param_groups[0]["params"][2] = net[2].weight
    new = net[2].weight.detach().clone()
    train(net, optimizer, 1, 8)
    torch.testing.assert_close(optimizer.state[net[2].weight]["initial_rms"], new.square().mean().sqrt())
    assert all(optimizer.state[param] for param in net.parameters())
    optimizer.state.clear()
    train(net, optimizer, 1, 9)
    assert optimizer.steps_made == 10
    assert all(param.isfinite().all() for param in net.parameters())


def test_a_parameter_that_was_appended_to_a_group_by_hand_is_trained():
    net = model()
    optimizer = LearnedOptimizer([net[0].weight], AdamRule())
    optimizer.param_groups[0]["params"].append(net[2].weight)
    before = net[2].weight.detach().clone()
    train(net, optimizer)
    assert not torch.equal(net[2].weight, before)
    assert "group0.1" in optimizer.role_table()


@pytest.mark.parametrize("rule", [AdamRule(0.01), ResidualRule(controller=False)], ids=lambda rule: rule.rule_name)
def test_complex_parameters_are_trained_as_pairs_of_real_numbers(rule):
    torch.manual_seed(0)
    values, target = torch.randn(4, 3, dtype=torch.complex64), torch.randn(4, 3, dtype=torch.complex64)
    as_complex, as_pairs = nn.Parameter(values.clone()), nn.Parameter(torch.view_as_real(values).clone())
    optimizers = [LearnedOptimizer([param], rule, total_steps=30) for param in (as_complex, as_pairs)]
    for _ in range(30):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (as_complex - target).abs().square().sum().backward()
        (as_pairs - torch.view_as_real(target)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(as_complex.detach()), as_pairs.detach())
    assert (as_complex - target).abs().mean() < (values - target).abs().mean()
    again = LearnedOptimizer([as_complex], rule, total_steps=30)
    again.load_state_dict(optimizers[0].state_dict())
    assert again.steps_made == 30


@pytest.mark.parametrize(
    "normalised", [spectral_norm, weight_norm, nn.utils.spectral_norm, nn.utils.weight_norm], ids=lambda f: f.__module__
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_building_carries_out_no_normalisation_and_roles_are_those_of_the_weights(normalised):
    net = nn.Sequential(normalised(nn.Linear(8, 16)), nn.ReLU(), normalised(nn.Linear(16, 3)))
    before = {name: value.clone() for name, value in net.named_buffers()}
    optimizer = LearnedOptimizer(net, AdamRule())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    roles = {line.split()[0]: line.split()[2] for line in optimizer.role_table().splitlines()[1:]}
    weights = {name: role for name, role in roles.items() if "bias" not in name}
    norms = {name for name in weights if name.endswith(("original0", "weight_g"))}
    assert all(weights[name] == "vector" for name in norms)
    assert sorted(role for name, role in weights.items() if name not in norms) == ["head", "matrix"]


def test_bare_tensors_get_names_and_roles_from_the_module_later():
    net = model()
    optimizer = LearnedOptimizer(net.parameters(), AdamRule())
    optimizer.relabel({param: (name, "vector" if "bias" in name else "head") for name, param in net.named_parameters()})
    assert optimizer.role_table().count("head") == 2
    assert optimizer.param_groups[0]["names"] == [name for name, _ in net.named_parameters()]
