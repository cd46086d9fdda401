"""``state_dict`` and back: only plain data, nothing cast, nothing shared, and all or nothing."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_flatten

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, SGDRule


def model(seed=0, dtype=torch.float32, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 4), nn.Linear(4, 2)).to(dtype)


def train(net, optimizer, steps=3, first=0):
    dtype = next(net.parameters()).dtype
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = net(torch.randn(5, 3, generator=torch.Generator().manual_seed(step)).to(dtype)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    return [param.detach().clone() for param in net.parameters()]


def meta_trained():
    """A rule whose networks are not silent, so that all of its state matters."""
    torch.manual_seed(0)
    rule = ResidualRule()
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return rule


def trained(dtype=torch.float32, rule=None, **options):
    net = model(dtype=dtype)
    optimizer = LearnedOptimizer(net, rule or meta_trained(), total_steps=20, **options)
    train(net, optimizer)
    return net, optimizer


def everything(optimizer):
    """All that a step depends on, for comparisons."""
    return copy.deepcopy((optimizer.state_dict(), optimizer.total_steps))


def assert_same(one, other):
    (a, structure), (b, other_structure) = tree_flatten(one), tree_flatten(other)
    assert structure == other_structure
    for x, y in zip(a, b, strict=True):
        if isinstance(x, torch.Tensor):
            assert (x.dtype, x.device) == (y.dtype, y.device)
            assert torch.equal(x, y)
        else:
            assert x == y


def addresses(saved):
    return {leaf.data_ptr() for leaf in tree_flatten(saved)[0] if isinstance(leaf, torch.Tensor)}


def only_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str | int) for key in value) and all(map(only_plain, value.values()))
    if isinstance(value, list):
        return all(map(only_plain, value))
    return value is None or isinstance(value, torch.Tensor | bool | int | float | str)


def test_only_tensors_numbers_strings_lists_and_dicts():
    _, optimizer = trained()
    saved = optimizer.state_dict()
    assert only_plain(saved)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    assert_same(torch.load(buffer, weights_only=True), saved)


def test_a_checkpoint_from_before_the_first_step_begins_the_run_anew():
    net, optimizer = model(), LearnedOptimizer(model(), ResidualRule(), total_steps=20)
    before = everything(optimizer)
    assert before[0]["state"] == {}
    _, again = trained()
    again.load_state_dict(before[0])
    assert_same(everything(again), before)
    straight, resumed = LearnedOptimizer(net, meta_trained(), total_steps=20), model()
    expected = train(net, straight)
    late = LearnedOptimizer(resumed, meta_trained(), total_steps=20)
    late.load_state_dict(LearnedOptimizer(model(), meta_trained(), total_steps=20).state_dict())
    assert all(torch.equal(x, y) for x, y in zip(train(resumed, late), expected, strict=True))


@pytest.mark.parametrize("when", ["save", "load"])
def test_the_step_of_distributed_checkpoints_creates_state_and_counts_as_none(when):
    """``torch.distributed.checkpoint`` makes a step with zero gradients and a zero rate where there is no state."""
    net, optimizer = model(), None
    optimizer = LearnedOptimizer(net, meta_trained(), total_steps=20)
    before = [param.detach().clone() for param in net.parameters()]
    if when == "save":
        get_optimizer_state_dict(net, optimizer)
    else:
        trained_net, other = trained()
        set_optimizer_state_dict(net, optimizer, get_optimizer_state_dict(trained_net, other))
        assert_same(everything(optimizer), everything(other))
    assert all(torch.equal(x, y) for x, y in zip(before, net.parameters(), strict=True))
    assert optimizer.steps_made == optimizer.calls == (0 if when == "save" else 3)
    assert optimizer.skipped_steps == 0


def test_parameters_are_matched_by_their_names():
    """The same names in another order: a state goes where its name is, as weights do."""
    net, optimizer = trained()
    saved = everything(optimizer)[0]
    straight = train(net, optimizer, 2, 3)
    turned, _ = trained()
    other = LearnedOptimizer(list(turned.named_parameters())[::-1], optimizer.rule, total_steps=20)
    group = optimizer.param_groups[0]
    other.param_groups[0]["roles"] = [
        group["roles"][group["names"].index(name)] for name, _ in turned.named_parameters()
    ][::-1]
    other.load_state_dict(saved)
    for name, param in turned.named_parameters():
        index = optimizer.param_groups[0]["names"].index(name)
        for key, value in other.state[param].items():
            assert torch.equal(value, saved["state"][index][key])
    ends = train(turned, other, 2, 3)
    for x, y in zip(straight, ends, strict=True):
        torch.testing.assert_close(x, y)


def test_a_parameter_without_saved_state_begins_anew():
    net, optimizer = trained()
    saved = everything(optimizer)[0]
    del saved["state"][2]
    other = LearnedOptimizer(net, optimizer.rule, total_steps=20)
    other.load_state_dict(saved)
    assert net[2].weight not in other.state
    train(net, other, 1, 3)
    assert other.state[net[2].weight].keys() == other.state[net[0].weight].keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_nothing_is_cast_and_the_callers_dict_is_left_alone(dtype):
    _, optimizer = trained(dtype)
    saved = everything(optimizer)[0]
    other = LearnedOptimizer(model(1, dtype), optimizer.rule, total_steps=20)
    given = copy.deepcopy(saved)
    other.load_state_dict(given)
    assert_same(given, saved)
    assert_same(other.state_dict(), saved)
    assert not addresses(other.state_dict()) & addresses(given)
    net = model(1, dtype)
    other = LearnedOptimizer(net, optimizer.rule, total_steps=20)
    other.load_state_dict(given)
    train(net, other)
    assert_same(given, saved)  # and training does not write into it either
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for state in other.state.values() for value in state.values()} == {wanted}
    assert other.param_groups[0]["step"].dtype == torch.int64


def test_a_state_dict_is_a_snapshot():
    net, optimizer = trained()
    saved = optimizer.state_dict()
    copied = copy.deepcopy(saved)
    train(net, optimizer)
    assert_same(saved, copied)


def test_names_for_ids():
    """Sharded checkpoints name parameters where torch counts them."""
    _, optimizer = trained()
    saved = optimizer.state_dict()
    names = [name for name, _ in model().named_parameters()]
    by_name = {
        "state": {names[key]: value for key, value in saved["state"].items()},
        "param_groups": [{**group, "params": [names[k] for k in group["params"]]} for group in saved["param_groups"]],
    }
    other = LearnedOptimizer(model(1), optimizer.rule, total_steps=20)
    other.load_state_dict(by_name)
    assert_same(other.state_dict(), saved)


@pytest.mark.parametrize("flat", [False, True])
def test_the_forms_of_distributed_checkpoints(flat):
    """``torch.distributed.checkpoint`` makes a step of its own where state is missing; here none is."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, optimizer = trained()
    before = everything(optimizer)
    saved = get_optimizer_state_dict(net, optimizer, options=options)
    assert_same(everything(optimizer), before)
    other_net = model(1)
    other = LearnedOptimizer(other_net, optimizer.rule, total_steps=20)
    set_optimizer_state_dict(other_net, other, saved, options=options)
    assert_same(everything(other), before)


def test_settings_come_from_the_checkpoint_names_and_roles_do_not():
    net, optimizer = trained(lr=0.3, weight_decay=0.01)
    bare = LearnedOptimizer(net.named_parameters(), optimizer.rule, total_steps=7)
    bare.param_groups[0]["roles"] = optimizer.param_groups[0]["roles"]
    bare.param_groups[0]["names"] = list("abcdef")
    bare.load_state_dict(optimizer.state_dict())
    group = bare.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["names"]) == (0.3, 0.01, list("abcdef"))


@pytest.mark.parametrize(("own", "expected"), [(None, 20), (7, 7), (lambda: 9, 9)], ids=["none", "number", "function"])
def test_a_horizon_set_here_wins_over_the_saved_one(own, expected):
    _, optimizer = trained()
    net = model()
    other = LearnedOptimizer(net, optimizer.rule, total_steps=own)
    other.load_state_dict(optimizer.state_dict())
    train(net, other, 1)
    assert other.total_steps == expected
    assert int(other.param_groups[0]["step"]) == 4


def foreign():
    net = model()
    adam = torch.optim.AdamW(net.parameters())
    train_plainly(net, adam)
    return adam.state_dict()


def one_step(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step(loss=1.0)
    return optimizer


def train_plainly(net, optimizer):
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def damaged(change):
    saved = everything(trained()[1])[0]
    change(saved)
    return saved


BAD = {
    "AdamW": (foreign, "another optimizer or rule"),
    "another rule": (lambda: trained(rule=AdamRule())[1].state_dict(), "'lightning_lopt/1:adam' where"),
    "another configuration": (
        lambda: trained(rule=ResidualRule(direction=False))[1].state_dict(),
        r"state of '0.weight' has .* another configuration",
    ),
    "no controller": (lambda: trained(rule=ResidualRule(controller=False))[1].state_dict(), "another configuration"),
    "other shapes": (
        lambda: one_step(LearnedOptimizer(model(width=7), ResidualRule(), total_steps=5)).state_dict(),
        r"'0.weight' has .*\(7, 3\).* where .*\(6, 3\).* is needed; the checkpoint is of a model with other shapes",
    ),
    "fewer parameters": (
        lambda: LearnedOptimizer(model()[:3], ResidualRule(), total_steps=5).state_dict(),
        r"groups of sizes \[4\] where \[6\]",
    ),
    "other groups": (
        lambda: LearnedOptimizer(
            [{"params": list(model().parameters())[:2]}, {"params": list(model().parameters())[2:]}], ResidualRule()
        ).state_dict(),
        r"groups of sizes \[2, 4\] where \[6\]",
    ),
    "a lost entry": (lambda: damaged(lambda saved: saved["state"][2].pop("momentum")), "'2.weight' has {"),
    "a state that is a list": (lambda: damaged(lambda saved: saved["state"].update({0: []})), "is damaged: the state"),
    "no groups": (lambda: {"state": {}, "param_groups": []}, "is damaged: it has no 'state' and 'param_groups'"),
    "a list": (list, "is damaged: it is a list"),
    "parameters twice": (
        lambda: damaged(lambda saved: saved["param_groups"][0].update(params=[0] * 6)),
        "do not have unique keys",
    ),
    "a rate of nan": (lambda: damaged(lambda saved: saved["param_groups"][0].update(lr=float("nan"))), "lr of .* nan"),
    "a rate that is text": (lambda: damaged(lambda saved: saved["param_groups"][0].update(lr="1")), "lr of .* '1'"),
    "an unknown role": (lambda: damaged(lambda saved: saved["param_groups"][0].update(role="tail")), "role 'tail'"),
    "a step of -1": (
        lambda: damaged(lambda saved: saved["param_groups"][0].update(step=torch.tensor(-1))),
        "step is no number of steps",
    ),
    "a step that is a float": (
        lambda: damaged(lambda saved: saved["param_groups"][0].update(step=torch.tensor(1.0))),
        "step is no number of steps",
    ),
    "a horizon of 0": (lambda: damaged(lambda saved: saved["param_groups"][0].update(total_steps=0)), "total_steps is"),
    "integers": (
        lambda: damaged(lambda saved: saved["state"][0].update(momentum=saved["state"][0]["momentum"].to(torch.int32))),
        "has the type torch.int32",
    ),
    "a sparse tensor": (
        lambda: damaged(lambda saved: saved["state"][0].update(momentum=saved["state"][0]["momentum"].to_sparse())),
        "'momentum' in the saved state",
    ),
    "shared state that is a list": (
        lambda: damaged(lambda saved: saved["param_groups"][0].update(shared=[1])),
        "shared state is no dictionary",
    ),
    "a lost step": (lambda: damaged(lambda saved: saved["param_groups"][0].pop("step")), "it lacks step"),
    "no tensor": (lambda: damaged(lambda saved: saved["state"][0].update(momentum=1.0)), "'momentum': 'float'"),
}


@pytest.mark.parametrize(("saved", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(saved, message):
    net, optimizer = trained()
    before = everything(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved())
    assert_same(everything(optimizer), before)
    train(net, optimizer)


def test_other_roles_are_another_state():
    """Of a matrix nothing but the momentum is kept, of a head the second moment too."""
    rule = ResidualRule(direction=False)
    weight = nn.Parameter(torch.ones(2, 2))
    saved = one_step(LearnedOptimizer([{"params": weight, "role": "head"}], rule, total_steps=5)).state_dict()
    with pytest.raises(ValueError, match="'second_moment'"):
        LearnedOptimizer([weight], rule).load_state_dict(saved)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
def test_copies_go_on_alike_and_apart(how):
    net, optimizer = trained()
    net.requires_grad_(True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    other_net, other = how((net, optimizer))
    del schedule
    before = everything(other)
    straight = train(net, optimizer, 4, 3)
    assert_same(everything(other), before)
    assert other.rule is not optimizer.rule
    for x, y in zip(straight, train(other_net, other, 4, 3), strict=True):
        assert torch.equal(x, y)
    other.add_param_group({"params": nn.Parameter(torch.ones(2))})


def test_late_groups_are_restored():
    def build():
        net = model()
        net[0].requires_grad_(False)
        return net, LearnedOptimizer(net, rule, total_steps=20)

    rule = meta_trained()
    net, optimizer = build()
    train(net, optimizer)
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": net[0].parameters(), "lr": 0.5})
    train(net, optimizer, 2, 3)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    straight = train(net, optimizer, 3, 5)
    again, resumed = build()
    again[0].requires_grad_(True)
    resumed.add_param_group({"params": again[0].parameters()})
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for x, y in zip(straight, train(again, resumed, 3, 5), strict=True):
        assert torch.equal(x, y)


def test_sgd_has_nothing_shared():
    _, optimizer = trained(rule=SGDRule())
    other = LearnedOptimizer(model(), SGDRule())
    other.load_state_dict(optimizer.state_dict())
    assert_same(other.state_dict()["state"], optimizer.state_dict()["state"])
