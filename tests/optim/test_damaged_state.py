"""Damaged optimizer states: refused in a sentence with nothing changed, or loaded and good for the next steps."""

import copy
import random

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, ScheduleFreeAdamRule, load_rule

STRANGE = [
    None,
    -1,
    0,
    10**30,
    1.5,
    float("nan"),
    True,
    "text",
    [],
    {},
    [1, "a"],
    {"a": 1},
    b"bytes",
    object(),
    torch.tensor(float("nan")),
    torch.tensor(3),
    torch.tensor(-3),
    torch.ones(2, 3),
    torch.ones(4, 3, dtype=torch.float64),
    torch.ones(4, 3, dtype=torch.complex64),
    torch.ones(4, 3, dtype=torch.int8),
    torch.ones(4, 3).to_sparse(),
    torch.ones(4, 3, device="meta"),
    torch.ones(0),
]


def build(rule, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return net, LearnedOptimizer(net, rule, total_steps=30)


def steps(net, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        loss = net(torch.ones(5, 3)).square().mean()
        loss.backward()
        optimizer.step(loss)


def mutated(saved, draws):
    """A copy with one entry somewhere in the tree of dictionaries and lists removed, added or replaced."""
    tree = copy.deepcopy(saved)
    places, stack = [], [tree]
    while stack:
        branch = stack.pop()
        keys = list(branch) if isinstance(branch, dict) else range(len(branch))
        places += [(branch, key) for key in keys]
        stack += [branch[key] for key in keys if isinstance(branch[key], dict | list)]
    branch, key = draws.choice(places)
    change = draws.choice(["remove", "add", "replace", "replace", "replace"])
    if change == "remove":
        del branch[key]
    elif change == "add" and isinstance(branch, dict):
        branch[draws.choice([99, "more", -1, None])] = draws.choice(STRANGE)
    elif change == "add":
        branch.append(draws.choice(STRANGE))
    else:
        branch[key] = draws.choice(STRANGE)
    return tree


def refusal_of(optimizer, state):
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return None


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in leaves(tree[key])]
    if isinstance(tree, list):
        return [leaf for entry in tree for leaf in leaves(entry)]
    return [tree]


def same(one, other):
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("count", [60, pytest.param(700, marks=pytest.mark.slow)], ids=["some", "many"])
@pytest.mark.parametrize("name", ["base", "adam", "schedule_free"])
@pytest.mark.filterwarnings("ignore:.*were skipped", "ignore:.*past its total_steps", "ignore:lr=")
def test_a_damaged_state_is_refused_or_good(name, count):
    rule = {"base": lambda: load_rule("base"), "adam": AdamRule, "schedule_free": ScheduleFreeAdamRule}[name]()
    net, trained = build(rule)
    steps(net, trained, 3)
    saved = copy.deepcopy(trained.state_dict())
    draws = random.Random(name)
    refused = 0
    for _ in range(count):
        damaged = mutated(saved, draws)
        net, optimizer = build(rule)
        steps(net, optimizer, 2)
        before = copy.deepcopy(optimizer.state_dict())
        refusal = refusal_of(optimizer, damaged)
        if refusal is not None:
            assert 20 < len(refusal) < 1500
            assert same(optimizer.state_dict(), before)
            refused += 1
        steps(net, optimizer, 2)
        assert all(param.isfinite().all() for param in net.parameters())
    assert count / 10 < refused < count


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_state_saved_in_another_type_takes_that_of_the_arithmetic(dtype):
    rule = load_rule("base")
    net, trained = build(rule)
    steps(net, trained, 3)
    saved = copy.deepcopy(trained.state_dict())
    for tensors in saved["state"].values():
        tensors |= {key: x.to(dtype) for key, x in tensors.items() if x.is_floating_point()}
    resumed_net, optimizer = build(rule)
    resumed_net.load_state_dict(net.state_dict())
    optimizer.load_state_dict(saved)
    steps(net, trained, 3)
    steps(resumed_net, optimizer, 3)
    tolerance = {torch.float64: 0.0, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]  # what the narrow types have lost
    for x, y in zip(net.parameters(), resumed_net.parameters(), strict=True):
        torch.testing.assert_close(y, x, rtol=0, atol=tolerance)
