"""``LearnedOptimizer(compile=True)``: the steps of the plain path, through a compiled graph for each kind of stack.

What holds for compiled steps holds for traced ones (``compile=None``), and is tested for both (``way``).
"""

import copy
import logging
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, LossGuard, SGDRule, load_rule
from lightning_lopt.inductor_graphs import compiled, module_of
from lightning_lopt.optim import traced_steps
from lightning_lopt.optim.compiled_steps import CompiledSteps
from lightning_lopt.rules import RULES

OURS = {name: rule for name, rule in sorted(RULES.items()) if rule.__module__.startswith("lightning_lopt.")}
NAN = float("nan")


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """The recorded graphs, which run uncompiled."""
    modules = []

    def build(program, examples):
        modules.append(module_of(program))
        return modules[-1]

    monkeypatch.setattr(CompiledSteps, "build", staticmethod(build))
    for name in ("FIRST", "RETURNS", "LEAST_USES"):  # traced from the first step on
        monkeypatch.setattr(traced_steps, name, 0)
    return modules


@pytest.fixture(params=[True, None], ids=["compiled", "traced"])
def way(request):
    """The argument ``compile``."""
    return request.param


def model(dtype=torch.float64):
    """Four tensors of one shape, which are stepped as one, and others."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(4) for layer in (nn.Linear(4, 4), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, 4), *blocks, nn.Linear(4, 2)).to(dtype)


def train(net, optimizer, steps=3, first=0, bad=(), scaler=None):
    """Lightning's order of things: gradients set to ``None``, scaled, clipped; the loss of steps in ``bad`` is NaN."""
    param = next(net.parameters())
    for number in range(first, first + steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number)).to(param.dtype)
        optimizer.zero_grad(set_to_none=True)
        loss = net(x).square().mean() * (NAN if number in bad else 1.0)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        if number == 1:
            net[1].weight.grad = None
        if scaler is None:
            optimizer.step(loss)
        else:
            optimizer.set_loss(loss)
            scaler.step(optimizer)
            scaler.update()
    return [p.detach().clone() for p in net.parameters()]


def run(rule, compile, *, dtype=torch.float64, options=None, **how):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has random weights")
        net = model(dtype)
        optimizer = LearnedOptimizer(net, rule, total_steps=30, compile=compile, **(options or {}))
        return train(net, optimizer, **how), optimizer


def makes_graphs(optimizer):
    """Whether steps were compiled or traced, and nothing failed."""
    steps = optimizer._compiled_steps if optimizer.compiles else optimizer._traced_steps
    return steps.count > 1 and not steps.failure


def assert_close(ends, others, **how):
    for end, other in zip(ends, others, strict=True):
        torch.testing.assert_close(end, other, **(how or {"rtol": 1e-9, "atol": 1e-12}))


@pytest.mark.parametrize(
    "name", ["base", "adam", *(pytest.param(name, marks=pytest.mark.slow) for name in OURS if name != "adam")]
)
@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_the_steps_of_rules(name, graphs):
    """Among them one that is skipped."""
    torch.manual_seed(1)
    rule = load_rule("base") if name == "base" else OURS[name]()
    compiled, optimizer = run(rule, True, steps=4, bad=(2,))
    assert len(graphs) > 1
    assert makes_graphs(optimizer)
    assert (optimizer.steps_made, optimizer.skipped_steps) == (3, 1)
    assert_close(compiled, run(rule, False, steps=4, bad=(2,))[0])


def test_one_graph_for_each_kind_however_many_there_are_and_whatever_numbers_change(graphs, caplog):
    """Many shapes, a schedule of rate and decay, a rule with phases."""

    class InTurns(SGDRule):
        period = 3

    params = [nn.Parameter(torch.ones(size)) for size in range(1, 13)]
    with caplog.at_level(logging.INFO, logger="lightning_lopt"):
        optimizer = LearnedOptimizer(params, InTurns(), total_steps=100, weight_decay=0.1, compile=True)
        for step in range(6):
            optimizer.param_groups[0].update(lr=1.0 / (1 + step), weight_decay=0.1 / (1 + step))
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
    assert len(graphs) == 1 + 2 * len(params)  # one for the quantities of all tensors
    lines = [record.message for record in caplog.records]
    assert lines[0] == "LearnedOptimizer: steps of rule 'sgd' are compiled"
    assert len(lines) == 1 + len(graphs)
    assert lines[2].startswith("LearnedOptimizer: step of vector, (1,), full=True: compiled in ")


def test_weight_decay_is_that_of_the_plain_path(way):
    """Up to the rounding of θ, which is in float32."""
    runs = [run(load_rule("base"), compile, options={"weight_decay": 0.3})[0] for compile in (way, False)]
    assert_close(*runs, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_steps_that_are_not_finite_are_skipped(way):
    compiled, optimizer = run(load_rule("base"), way, steps=6, bad=(2, 4))
    assert makes_graphs(optimizer)
    assert (optimizer.steps_made, optimizer.skipped_steps) == (4, 2)
    assert_close(compiled, run(load_rule("base"), False, steps=6, bad=(2, 4))[0])


def test_a_state_that_is_not_finite_reaches_no_parameter(way):
    _, optimizer = run(load_rule("base"), way)
    net_params = optimizer.param_groups[0]["params"]
    before = [param.detach().clone() for param in net_params]
    next(value for value in optimizer.state[net_params[0]].values() if value.ndim).fill_(NAN)
    optimizer.step(torch.tensor(1.0))
    assert optimizer.skipped_steps == 1
    assert torch.equal(net_params[0], before[0])
    assert all(param.isfinite().all() for param in net_params)


def test_gradient_scaler(way):
    runs = [run(AdamRule(0.01), compile, scaler=torch.amp.GradScaler("cpu"))[0] for compile in (way, False)]
    assert_close(*runs)


def test_half_precision(way):
    runs = [run(AdamRule(0.01), compile, dtype=torch.bfloat16)[0] for compile in (way, False)]
    assert_close(*runs, rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_stop_and_resume_and_copies_are_no_stop(copied, way):
    expected, _ = run(AdamRule(0.01), way, steps=6)
    net = model()
    optimizer = LearnedOptimizer(net, AdamRule(0.01), total_steps=30, compile=way)
    train(net, optimizer)
    other, again = copied((net, optimizer))
    assert again.compiles is way
    assert again._traced_steps.count == 0
    assert_close(train(other, again, first=3), expected, rtol=0, atol=0)
    assert makes_graphs(again)
    fresh = model()
    fresh.load_state_dict(net.state_dict())
    resumed = LearnedOptimizer(fresh, AdamRule(0.01), total_steps=30, compile=way)
    resumed.load_state_dict(optimizer.state_dict())
    assert_close(train(fresh, resumed, first=3), expected, rtol=0, atol=0)


def test_state_that_was_cleared_begins_anew(way):
    ends = []
    for compile in (way, False):
        net = model()
        optimizer = LearnedOptimizer(net, AdamRule(0.01), total_steps=30, compile=compile)
        train(net, optimizer)
        del optimizer.state[net[3].weight]
        ends.append(train(net, optimizer, first=3))
    assert_close(*ends)


@pytest.mark.filterwarnings("ignore:.*")
def test_a_guard_switches_and_diagnostics_are_filled(way):
    class Ascent(SGDRule):
        def step(self, inputs, controls, at):
            update, state = super().step(inputs, controls, at)
            return -5 * update, state

    ends = []
    for compile in (way, False):
        net = model()
        optimizer = LearnedOptimizer(net, Ascent(), total_steps=100, guard=LossGuard(), compile=compile)
        optimizer.signals.wants_diagnostics = True
        train(net, optimizer, steps=1)
        assert optimizer.signals.diagnostics
        ends.append(train(net, optimizer, steps=80, first=1))
        assert optimizer.guard_state not in ("off", "active")
    assert_close(*ends)


def test_without_a_compiler_one_warning_and_the_plain_path(monkeypatch):
    def no_compiler(program, examples):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(CompiledSteps, "build", staticmethod(no_compiler))
    expected, _ = run(load_rule("base"), False)
    with pytest.warns(UserWarning, match=r"(?s)not compiled: .*no C\+\+ compiler") as seen:
        plain, _ = run(load_rule("base"), True)
    assert len(seen) == 1
    assert_close(plain, expected, rtol=0, atol=0)


def test_an_error_of_the_rule_is_raised():
    class Broken(SGDRule):
        def step(self, inputs, controls, at):
            raise KeyError("momentum of another rule")

    with pytest.raises(KeyError, match="of another rule"), pytest.warns(UserWarning, match="not compiled"):
        run(Broken(), True)


def test_steps_are_compiled_where_they_return(graphs, monkeypatch):
    monkeypatch.setattr(traced_steps, "RETURNS", 1)
    net = model()
    optimizer = LearnedOptimizer(net, SGDRule(), compile=True)
    train(net, optimizer, steps=1)
    assert not graphs
    train(net, optimizer, steps=1, first=2)
    assert len(graphs) > 1


def test_large_stacks_are_compiled(graphs, monkeypatch):
    monkeypatch.setattr(traced_steps, "MOST_ENTRIES", 0)
    assert makes_graphs(run(SGDRule(), True)[1])
    assert not makes_graphs(run(SGDRule(), None)[1])


def test_a_compiled_step_of_one_parameter(monkeypatch):
    """In every run, since the other tests of the compiler are slow."""
    monkeypatch.setattr(CompiledSteps, "build", staticmethod(compiled))
    ends = []
    for compile in (True, False):
        param = nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = LearnedOptimizer([param], AdamRule(0.01), total_steps=30, compile=compile, weight_decay=0.1)
        for step in range(4):
            param.grad = param.detach() + step
            optimizer.step()
        ends.append([param.detach()])
        assert compile is False or makes_graphs(optimizer)
    assert_close(*ends, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_traced_as_a_whole_is_not_compiled_within(graphs):
    net = model()
    optimizer = LearnedOptimizer(net, SGDRule(), compile=True)
    net(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    torch.compile(optimizer.step, backend="eager")()
    assert not graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", *OURS])
def test_steps_compiled_by_inductor(name, monkeypatch):
    """The same numbers up to rounding, and the same bits in each run; ``base`` through both kinds of its steps.

    The quantities of all tensors are float32 also where parameters are float64.
    """
    monkeypatch.setattr(CompiledSteps, "build", staticmethod(compiled))
    torch.manual_seed(1)
    rule = load_rule("base") if name == "base" else OURS[name]()
    steps = 25 if name == "base" else 3
    ends, optimizer = run(rule, True, steps=steps)
    assert makes_graphs(optimizer)
    assert_close(ends, run(rule, False, steps=steps)[0], rtol=1e-4, atol=1e-4 if name == "base" else 1e-5)
    assert_close(run(rule, True, steps=steps)[0], ends, rtol=0, atol=0)
