"""``LearnedOptimizer(compile=None)`` on a CPU: the steps of small stacks through graphs, bit for bit as without.

What holds for compiled steps as well is tested in ``test_compiled_stacks.py``.
"""

import logging
import warnings

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, SGDRule, load_rule
from lightning_lopt.optim import stack_steps, traced_steps
from lightning_lopt.rules import RULES
from lightning_lopt.traced_calls import TracedCalls
from lightning_lopt.tracing import TracedFunction

OURS = {name: rule for name, rule in sorted(RULES.items()) if rule.__module__.startswith("lightning_lopt.")}


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """Steps are traced early in short runs."""
    for name, value in (("FIRST", 2), ("RETURNS", 1), ("LEAST_USES", 1)):
        monkeypatch.setattr(traced_steps, name, value)


def model():
    """A convolution, four matrices and five vectors that are stepped as one, a head."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 8), *blocks, nn.Linear(8, 3))


def train(net, optimizer, steps=40, first=0, between=lambda number: None):
    for number in range(first, first + steps):
        between(number)
        x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step(loss)
    return [p.detach().clone() for p in net.parameters()]


def build(rule, compile=None, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has random weights")
        net = model()
        return net, LearnedOptimizer(net, rule, **({"total_steps": 400} | options), compile=compile)


def rule_named(name):
    torch.manual_seed(1)
    return load_rule("base") if name == "base" else OURS[name]()


def assert_same(ends, others):
    assert all(torch.equal(end, other) for end, other in zip(ends, others, strict=True))


@pytest.mark.parametrize(
    "name",
    ["base", "adam", "celo2_base", "muon", "mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in OURS)],
)
def test_the_bits_of_the_plain_path_in_a_run_and_after_a_stop(name):
    net, optimizer = build(rule_named(name))
    traced = train(net, optimizer)
    assert optimizer._traced_steps.count > 3
    plain_net, plain = build(rule_named(name), compile=False)
    assert_same(traced, train(plain_net, plain))
    for state, other in zip(optimizer.state.values(), plain.state.values(), strict=True):
        assert_same(state.values(), other.values())
    other_net, resumed = build(rule_named(name))
    other_net.load_state_dict(plain_net.state_dict())
    resumed.load_state_dict(plain.state_dict())
    assert_same(train(other_net, resumed, first=40, steps=12), train(plain_net, plain, first=40, steps=12))
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same(train(net, optimizer, first=40, steps=12), plain_net.parameters())


def test_full_steps_have_graphs_of_their_own():
    _, optimizer = (pair := build(load_rule("base")))
    train(*pair, steps=20)  # all of them full ones
    full = optimizer._traced_steps.count
    train(*pair, steps=20, first=20)
    assert optimizer._traced_steps.count > full


def test_full_steps_of_vectors_have_no_graphs_of_their_own():
    net, optimizer = build(load_rule("base"))
    train(net, optimizer, steps=40)
    stacks = optimizer._stacked.stored_stacks
    matrices = [stack for stack in stacks if stack.members[0].param.ndim > 1]
    assert optimizer._traced_steps.count == 1 + len(stacks) + len(matrices)


def test_a_step_of_a_small_model_is_one_graph(monkeypatch):
    net, optimizer = build(load_rule("base"))
    train(net, optimizer, steps=30)
    assert optimizer._traced_steps._whole_steps
    monkeypatch.setattr(stack_steps, "MOST_TOGETHER", 0)
    other_net, other = build(load_rule("base"))
    train(other_net, other, steps=30)
    assert not other._traced_steps._whole_steps
    assert_same(net.parameters(), other_net.parameters())


def test_a_step_with_a_stack_that_gets_no_graph_is_not_one_graph(monkeypatch):
    monkeypatch.setattr(traced_steps, "MOST_ENTRIES", 100)
    net, optimizer = build(load_rule("base"))
    train(net, optimizer, steps=30)
    assert optimizer._traced_steps.count > 1
    assert not optimizer._traced_steps._whole_steps
    plain_net, plain = build(load_rule("base"), compile=False)
    assert_same(net.parameters(), train(plain_net, plain, steps=30))


def test_one_stack_with_an_update_that_is_not_finite_is_not_written():
    def between(optimizer):
        def change(number):
            if number == 10:
                next(iter(optimizer.state.values()))["momentum"].fill_(torch.inf)

        return change

    ends = []
    for compile in (None, False):
        net, optimizer = build(AdamRule(), compile)
        with pytest.warns(UserWarning, match="were skipped"):
            ends.append(train(net, optimizer, steps=18, between=between(optimizer)))
        assert optimizer.skipped_steps == 8
        assert (optimizer._traced_steps.count > 0) is (compile is None)
        assert all(x.isfinite().all() for x in net.parameters())
    assert_same(*ends)


def test_the_log_says_once_that_steps_are_traced(caplog):
    with caplog.at_level(logging.INFO, logger="lightning_lopt"):
        train(*build(AdamRule()), steps=8)
    assert [record.message for record in caplog.records] == [
        "LearnedOptimizer: steps of rule 'adam' are traced from here on"
    ]


class Noisy(SGDRule):
    def step(self, inputs, controls, at):
        update, state = super().step(inputs, controls, at)
        return update * torch.rand(()), state


class Counting(SGDRule):
    count = 0

    def step(self, inputs, controls, at):
        self.count += 1
        update, state = super().step(inputs, controls, at)
        return update / self.count, state


class Looking(SGDRule):
    def step(self, inputs, controls, at):
        update, state = super().step(inputs, controls, at)
        return (update if update.sum() > 0 else 2 * update), state


@pytest.mark.parametrize(("rule", "why"), [(Noisy, "draws random numbers"), (Counting, "other values"), (Looking, "")])
def test_a_rule_that_cannot_be_traced_is_stepped_as_it_is(rule, why, caplog, monkeypatch):
    monkeypatch.setattr("lightning_lopt.rules.contract.stacks.CPU_FEWEST", 100)  # vmap refuses the first and the last
    with caplog.at_level(logging.INFO, logger="lightning_lopt"):
        traced_net, optimizer = build(rule())
        train(traced_net, optimizer, steps=2)
        torch.manual_seed(2)
        traced = train(traced_net, optimizer, steps=6, first=2)
    (line,) = [record.message for record in caplog.records if "not traced" in record.message]
    assert why in line
    assert optimizer._traced_steps.count == 0
    if rule is not Counting:  # which counts what the tracer runs, too
        plain_net, plain = build(rule(), compile=False)
        train(plain_net, plain, steps=2)
        torch.manual_seed(2)
        assert_same(traced, train(plain_net, plain, steps=6, first=2))


def test_theta_may_change_and_the_rule_may_be_replaced():
    def changes(optimizer):
        def between(number):
            if number == 6:
                optimizer.rule.log_lr.data.sub_(1.0)
            if number == 9:
                optimizer.rule.load_state_dict(AdamRule(0.02).state_dict())
            if number == 12:
                optimizer.rule.log_lr = nn.Parameter(torch.tensor(-5.0))
            if number == 15:
                optimizer.rule.betas = (0.8, 0.99)
            if number == 18:
                optimizer.rule = AdamRule(0.003)
            if number == 21:
                optimizer.rule.double()

        return between

    ends = []
    for compile in (None, False):
        net, optimizer = build(AdamRule(0.01), compile)
        ends.append(train(net, optimizer, steps=26, between=changes(optimizer)))
        assert (optimizer._traced_steps.count > 0) is (compile is None)
    assert_same(*ends)


def test_groups_late_parameters_changed_shapes_and_other_strides():
    def changes(net, optimizer):
        def between(number):
            optimizer.param_groups[0]["lr"] = 1.0 / (1 + number)
            if number == 6:
                net[-1].weight.requires_grad_(False)
            if number == 10:
                net[-1].weight.requires_grad_(True)
            if number == 14:
                torch.manual_seed(5)
                net[-1] = nn.Linear(8, 5)
                optimizer.param_groups[1]["params"][-2:] = net[-1].parameters()
            if number == 18:
                net[0].to(memory_format=torch.channels_last)

        return between

    ends = []
    for compile in (None, False):
        net = model()
        groups = [{"params": net[:3].parameters(), "weight_decay": 0.1}, {"params": net[3:].parameters(), "lr": 0.5}]
        optimizer = LearnedOptimizer(groups, "base", total_steps=400, compile=compile)
        ends.append(train(net, optimizer, steps=26, between=changes(net, optimizer)))
        assert not optimizer._traced_steps.failure
    assert_same(*ends)


def test_weight_decay_of_each_step_is_not_traced_and_a_tensor_is_an_input():
    def changes(optimizer, number_of):
        return lambda number: optimizer.param_groups[0].update(weight_decay=number_of(0.1 / (1 + number)))

    for number_of, least, most in ((float, 1, 1), (torch.tensor, 2, 20)):
        ends = []
        for compile in (None, False):
            net, optimizer = build(SGDRule(), compile, weight_decay=0.1)
            ends.append(train(net, optimizer, steps=10, between=changes(optimizer, number_of)))
            assert compile is False or least <= optimizer._traced_steps.count <= most
        assert_same(*ends)


def test_too_many_kinds_end_it(monkeypatch, caplog):
    monkeypatch.setattr(traced_steps, "MOST_KINDS", 3)
    with caplog.at_level(logging.INFO, logger="lightning_lopt"):
        net, optimizer = build(AdamRule())
        traced = train(net, optimizer, steps=8)
    assert optimizer._traced_steps.failure == "there are more than 3 kinds of stacks"
    assert sum("not traced" in record.message for record in caplog.records) == 1
    assert_same(traced, train(*build(AdamRule(), False), steps=8))


@pytest.mark.parametrize("total_steps", [None, 8])
def test_short_runs_and_those_of_unknown_length_are_not_traced(total_steps, monkeypatch):
    monkeypatch.setattr(traced_steps, "LEAST_USES", 8)
    net, optimizer = build(AdamRule(), total_steps=total_steps)
    train(net, optimizer, steps=8)
    assert optimizer._traced_steps.count == 0


def test_state_in_bfloat16():
    ends = []
    for compile in (None, False):
        net, optimizer = build(load_rule("base"), compile, state_dtype=torch.bfloat16)
        ends.append(train(net, optimizer, steps=26))
        assert (optimizer._traced_steps.count > 3) is (compile is None)
    assert_same(*ends)


def test_an_error_in_a_graph_leads_back_to_the_plain_path(monkeypatch):
    net, optimizer = build(AdamRule())
    train(net, optimizer, steps=6)
    for graph in (TracedFunction, TracedCalls):
        monkeypatch.setattr(graph, "__call__", lambda self, arguments: torch.ones(2) @ torch.ones(3))
    traced = train(net, optimizer, steps=4, first=6)
    assert "RuntimeError" in optimizer._traced_steps.failure or optimizer._traced_steps.failure
    assert_same(traced, train(*build(AdamRule(), False), steps=10))


def test_nothing_global_changes_and_nothing_warns():
    before = torch.get_rng_state(), torch._C._get_graph_executor_optimize(), torch.get_default_dtype()
    net, optimizer = build(load_rule("base"))
    torch.set_rng_state(before[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, steps=8)
    assert optimizer._traced_steps.count > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch._C._get_graph_executor_optimize(), torch.get_default_dtype()) == before[1:]
    net(torch.ones(2, 1, 4, 4)).sum().backward()  # results of graphs are ordinary tensors to autograd
    optimizer.state[net[3].weight]["momentum_of_mine"] = optimizer.param_groups[0]["shared"]["gradient_unit"].add_(0)
