"""What may be passed as ``params``: names, roles and settings of every parameter, now and later."""

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, SGDRule


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.Conv1d(4, 4, 2), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))


def backward(net):
    tokens = torch.arange(9).reshape(1, 9)
    hidden = net[1](net[0](tokens).mT)
    net[4](net[3](net[2](hidden))).square().mean().backward()


def roles(optimizer):
    return {line.split()[0]: line.split()[2] for line in optimizer.role_table().splitlines()[1:]}


BY_TYPE = {
    "0.weight": "embedding",
    "1.weight": "matrix",
    "1.bias": "vector",
    "2.weight": "vector",
    "2.bias": "vector",
    "3.weight": "matrix",
    "3.bias": "vector",
    "4.weight": "head",
    "4.bias": "vector",
}
BY_SHAPE = {name: "vector" if role == "vector" else "matrix" for name, role in BY_TYPE.items()}


def test_module():
    optimizer = LearnedOptimizer(model(), AdamRule())
    assert roles(optimizer) == BY_TYPE
    assert "0.weight   9x4    embedding" in optimizer.role_table()


@pytest.mark.parametrize("build", [iter, list, tuple])
def test_bare_and_named_parameters_have_roles_by_shape(build):
    bare = roles(LearnedOptimizer(build(list(model().parameters())), AdamRule()))
    assert list(bare) == [f"group0.{index}" for index in range(9)]
    assert list(bare.values()) == list(BY_SHAPE.values())
    assert roles(LearnedOptimizer(build(list(model().named_parameters())), AdamRule())) == BY_SHAPE


def test_one_tensor_and_groups_with_settings_of_their_own():
    weight = nn.Parameter(torch.ones(2, 3))
    assert roles(LearnedOptimizer(weight, AdamRule())) == {"group0.0": "matrix"}
    net = model()
    optimizer = LearnedOptimizer(
        [
            {"params": net[0].weight, "role": "embedding", "lr": 0.5},
            {"params": net[3].named_parameters(), "weight_decay": 0.1, "role": "head"},
            {"params": (param for param in net[4].parameters())},
        ],
        AdamRule(),
    )
    assert roles(optimizer) == {
        "group0.0": "embedding",
        "weight": "head",
        "bias": "head",
        "group2.0": "matrix",
        "group2.1": "vector",
    }
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0), (1, 0.1), (1, 0)]


def test_lr_and_weight_decay_act_per_group():
    """With SGD in closed form: p - lr (0.1 (g + decay p))."""
    weights = [nn.Parameter(torch.full((2,), 3.0)) for _ in range(3)]
    groups = [{"params": weights[0]}, {"params": weights[1], "lr": 0.5}, {"params": weights[2], "weight_decay": 0.2}]
    optimizer = LearnedOptimizer(groups, SGDRule(0.1))
    for weight in weights:
        weight.grad = torch.ones(2)
    optimizer.step()
    for weight, expected in zip(weights, [3 - 0.1, 3 - 0.05, 3 - 0.1 * 1.6], strict=True):
        torch.testing.assert_close(weight.detach(), torch.full((2,), expected))


def test_roles_reach_the_rule():
    """A head is not orthogonalised, so its entries keep their own signs."""
    weight = nn.Parameter(torch.eye(3) + 1)
    updates = []
    for role in ("matrix", "head"):
        optimizer = LearnedOptimizer([{"params": weight, "role": role}], ResidualRule(), total_steps=5)
        before = weight.detach().clone()
        weight.grad = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.1], [1.0, 2.1, 3.0]])
        optimizer.step(loss=1.0)
        updates.append(weight.detach() - before)
    assert (updates[0] > 0).any()
    assert (updates[1] < 0).all()


def test_frozen_parameters_join_later_under_their_own_names_and_roles():
    net = model()
    net[0].requires_grad_(False)
    net[4].requires_grad_(False)
    optimizer = LearnedOptimizer(net, ResidualRule(), total_steps=9)
    assert roles(optimizer) == {name: role for name, role in BY_TYPE.items() if name[0] not in "04"}
    backward(net)
    optimizer.step(loss=1.0)
    net.requires_grad_(True)
    averages = optimizer.param_groups[0]["shared"]["loss_averages"].clone()
    optimizer.add_param_group({"params": [*net[0].parameters(), *net[4].parameters()], "lr": 0.1})
    assert torch.equal(optimizer.param_groups[0]["shared"]["loss_averages"], averages)
    assert averages.all()
    assert roles(optimizer) == BY_TYPE
    before = [param.detach().clone() for param in net.parameters()]
    backward(net)
    optimizer.step(loss=1.0)
    assert int(optimizer.param_groups[0]["step"]) == 2
    assert all(not torch.equal(x, y) for x, y in zip(before, net.parameters(), strict=True))
    assert optimizer.param_groups[1]["lr"] == 0.1
    assert optimizer.param_groups[1]["weight_decay"] == 0.0


def test_groups_may_be_empty_at_first():
    weight = nn.Parameter(torch.ones(2))
    optimizer = LearnedOptimizer([{"params": []}, {"params": weight}], ResidualRule(), total_steps=5)
    optimizer.add_param_group({"params": []})
    weight.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    assert (weight < 1).all()
    again = LearnedOptimizer([{"params": []}, {"params": weight}, {"params": []}], ResidualRule(), total_steps=5)
    again.load_state_dict(optimizer.state_dict())
    assert int(again.param_groups[0]["step"]) == 1


BAD = [
    ([], ValueError, "got no parameters"),
    ([{"params": []}], ValueError, "got no parameters"),
    (nn.Linear(2, 2).requires_grad_(False), ValueError, "got no parameters"),
    (nn.Linear, TypeError, r"got the class Linear where parameters are needed; pass Linear\(...\)"),
    (7, TypeError, "got a int where parameters are needed"),
    ([{"params": torch.ones(2), "role": "tail"}], ValueError, "parameter group 0 has role 'tail'"),
    ({nn.Parameter(torch.ones(2))}, TypeError, "set, whose order changes"),
    ([{"params": {nn.Parameter(torch.ones(2))}}], TypeError, "set, whose order changes"),
    ("base", TypeError, "holds a str where a tensor"),
    ([torch.ones(2), {"params": torch.ones(2)}], TypeError, "holds a dict where a tensor"),
    ([("a", torch.ones(2)), ("a", torch.ones(2))], ValueError, "two parameters are named 'a'"),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_refused(params, error, message):
    with pytest.raises(error, match=message):
        LearnedOptimizer(params, AdamRule())


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    net = model()
    optimizer = LearnedOptimizer(net[3], AdamRule())
    bad = [
        {"params": [net[3].weight]},
        {"params": net[4].named_parameters()},  # "weight" and "bias" are taken
        {"params": net[4].weight * 2},
        {"params": net[4].weight, "role": "tail"},
    ]
    for group in bad:
        with pytest.raises(ValueError, match=r"more than one|are named|non-leaf|has role"):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    backward(net)
    optimizer.step()
    assert len(optimizer.state) == 2


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}], ids=str)
def test_settings_out_of_range(option):
    with pytest.raises(ValueError, match="must be a number >= 0"):
        LearnedOptimizer(model(), AdamRule(), **option)
