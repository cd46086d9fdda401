import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, RNNMLPRule, SGDRule, StepContext


def model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(step, dtype=torch.float32):
    draws = torch.Generator().manual_seed(step)
    return torch.randn(16, 5, generator=draws).to(dtype), torch.randint(3, (16,), generator=draws)


def train(net, optimizer, steps, first=0, dtype=torch.float32):
    for step in range(first, first + steps):
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
    return [param.detach().clone() for param in net.parameters()]


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (AdamRule(1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)),
        (AdamRule(1e-3, betas=(0.8, 0.9)), lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.8, 0.9), weight_decay=0)),
        (SGDRule(0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            SGDRule(0.1, nesterov=True, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
    ],
)
def test_equals_torch_over_50_steps(rule, reference):
    ours, theirs = model(), model()
    a = train(ours, LearnedOptimizer(ours.parameters(), rule), 50)
    b = train(theirs, reference(theirs.parameters()), 50)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (AdamRule(1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)),
        (SGDRule(0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    ],
    ids=["adam", "sgd"],
)
def test_equals_torch_where_parameters_join_late_and_gradients_are_missing(rule, reference):
    results = []
    for build in (lambda p: LearnedOptimizer(p, rule), reference):
        net = model()
        optimizer = build([net[0].weight, net[2].weight])
        for step in range(30):
            if step == 10:
                optimizer.add_param_group({"params": [net[4].weight]})
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch(step)[0]), batch(step)[1]).backward()
            if step % 3 == 0:
                net[2].weight.grad = None
            optimizer.step()
        results.append([param.detach() for param in net.parameters()])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_stop_and_resume_is_no_stop(dtype):
    torch.manual_seed(0)
    rule = ResidualRule()
    with torch.no_grad():
        for value in rule.parameters():  # so that no network is silent, and all of the state matters
            value.add_(0.1 * torch.randn_like(value))
    straight, first = model(dtype=dtype), model(dtype=dtype)
    expected = train(straight, LearnedOptimizer(straight, rule, total_steps=20), 20, dtype=dtype)
    optimizer = LearnedOptimizer(first, rule, total_steps=20)
    train(first, optimizer, 9, dtype=dtype)
    saved = pickle.loads(pickle.dumps((first.state_dict(), optimizer.state_dict())))
    second = model(1, dtype=dtype)
    second.load_state_dict(saved[0])
    resumed = LearnedOptimizer(second, rule, total_steps=20)
    resumed.load_state_dict(saved[1])
    for x, y in zip(train(second, resumed, 11, first=9, dtype=dtype), expected, strict=True):
        assert torch.equal(x, y)
    assert all(
        value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for state in resumed.state.values()
        for value in state.values()
    )


def test_deepcopy_goes_on_alike():
    net = model()
    optimizer = LearnedOptimizer(net, ResidualRule(), total_steps=20)
    train(net, optimizer, 5)
    net2, optimizer2 = copy.deepcopy((net, optimizer))
    for x, y in zip(train(net, optimizer, 5, 5), train(net2, optimizer2, 5, 5), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    net = model()
    optimizer = LearnedOptimizer(net, ResidualRule(), total_steps=20)
    train(net, optimizer, 3)
    before = copy.deepcopy((list(net.parameters()), optimizer.state_dict()["state"]))
    next(net.parameters()).grad[0, 0] = float("nan") if bad == "gradient" else 0.0
    optimizer.step(loss=torch.tensor(float("inf") if bad == "loss" else 1.0))
    assert optimizer.skipped_steps == 1
    for x, y in zip(net.parameters(), before[0], strict=True):
        assert torch.equal(x, y)
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][key][name]) for name, value in state.items())


def test_missing_loss_and_horizon_say_what_to_do():
    net = model()
    net(batch(0)[0]).sum().backward()
    with pytest.raises(ValueError, match=r"LearnedOptimizerAdapter\(\)"):
        LearnedOptimizer(net, ResidualRule(), total_steps=5).step()
    with pytest.raises(ValueError, match="total_steps"):
        LearnedOptimizer(net, ResidualRule()).step(loss=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        LearnedOptimizer(net, ResidualRule(), total_steps=-1)


def test_foreign_checkpoint_is_refused():
    net = model()
    adam = torch.optim.AdamW(net.parameters())
    train(net, adam, 1)
    optimizer = LearnedOptimizer(net.parameters(), ResidualRule(), total_steps=5)
    with pytest.raises(ValueError, match="another optimizer"):
        optimizer.load_state_dict(adam.state_dict())


def test_past_the_horizon_warns_once_and_goes_on():
    net = model()
    optimizer = LearnedOptimizer(net, ResidualRule(), total_steps=3)
    train(net, optimizer, 3)
    with pytest.warns(UserWarning, match="past its total_steps=3") as record:
        train(net, optimizer, 3, 3)
    assert len(record) == 1


def test_lr_zero_and_missing_gradients_change_nothing():
    net = model()
    optimizer = LearnedOptimizer(net, ResidualRule(), total_steps=5, lr=0.0)
    before = [param.clone() for param in net.parameters()]
    after = train(net, optimizer, 2)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    optimizer.zero_grad()
    optimizer.step(loss=1.0)
    assert int(optimizer.param_groups[0]["step"]) == 2


def test_closure_runs_under_enable_grad_and_groups_override_roles():
    net = model()
    optimizer = LearnedOptimizer(
        [{"params": [net[0].weight, net[2].weight], "role": "embedding"}, {"params": net[4].weight}],
        ResidualRule(),
        total_steps=5,
    )
    assert optimizer.role_table().count("embedding") == 2

    def closure():
        optimizer.zero_grad()
        loss = net(batch(0)[0]).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0


@pytest.mark.parametrize("rule", [SGDRule(), AdamRule(), ResidualRule()], ids=lambda rule: rule.rule_name)
def test_weight_decay_shrinks(rule):
    results = []
    for decay in (0.0, 1.0):
        net = model()
        results.append(train(net, LearnedOptimizer(net, rule, total_steps=20, weight_decay=decay), 20))
    assert sum(p.norm() for p in results[1]) < sum(p.norm() for p in results[0])


def test_a_validation_loss_reaches_the_rule_that_reads_it():
    """The step equals that of the rule called by hand with the validated state; other rules do not notice."""
    outcomes = {}
    for build in (RNNMLPRule, SGDRule):
        for told in (False, True):
            torch.manual_seed(0)
            param = nn.Parameter(torch.ones(3))
            rule = build()
            optimizer = LearnedOptimizer([("w", param)], rule, total_steps=5)
            state = rule.init_state({"w": param.detach()}, {})
            for step in range(2):
                if told and step == 1:
                    optimizer.validated(0.25)
                    state = rule.validated(state, torch.tensor(0.25), torch.tensor(0.2))
                before, param.grad = param.detach().clone(), torch.tensor([1.0, -2.0, 0.5])
                optimizer.step(loss=1.0 + step)
                context = StepContext(torch.tensor(float(step)), torch.tensor(5.0), torch.tensor(1.0 + step))
                with torch.no_grad():
                    updates, state = rule({"w": before}, {"w": param.grad}, state, context)
                assert torch.equal(param.detach(), before + updates["w"])
            outcomes[build, told] = param.detach().clone()
    assert not torch.equal(outcomes[RNNMLPRule, False], outcomes[RNNMLPRule, True])
    assert torch.equal(outcomes[SGDRule, False], outcomes[SGDRule, True])
