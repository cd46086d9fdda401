"""Full steps and others: whoever steps a rule tells it which this one is, from a count that survives a restart."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_lopt import LearnedOptimizer, ResidualRule, SGDRule
from lightning_lopt.meta import Compiled, Eager, start_runs, unroll
from lightning_lopt.meta.pilot import RunSnapshot, pilot_losses
from lightning_lopt.meta.theta import stacked_theta
from lightning_lopt.rules.residual import FIRST_TURNS
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import Quadratic


class Counting(SGDRule):
    """Adds 1 to every parameter in a full step, 0.01 in others."""

    period = 3

    def step(self, inputs, controls, at):
        return torch.full_like(inputs.grad, 1.0 if inputs.full else 0.01), dict(inputs.state)


STEPS, EXPECTED = 8, 3 + 5 * 0.01  # steps 0, 3 and 6 are full ones


@pytest.mark.parametrize("compiled", [False, True])
def test_inner_runs(compiled):
    """Also where they go on, and compiled, in a graph for each phase."""
    torch._dynamo.reset()
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    rule, task = Counting(), Quadratic(torch.tensor([1.0, 4.0]))
    runs = start_runs(rule, task, pairs=1, horizon=20, seed=0)
    begin, theta = runs.params, stacked_theta([rule], 2)
    with torch.no_grad():
        for steps in (2, 5, 1):
            execution = Compiled(count) if compiled else Eager()
            runs, _ = unroll(rule, theta, runs, steps, generator(0), execution=execution)
    for name, value in runs.params.items():
        torch.testing.assert_close(value - begin[name], torch.full_like(value, EXPECTED))
    assert len(graphs) == (rule.period if compiled else 0)


@pytest.mark.parametrize("step", [0, 1])
def test_pilots_go_on_from_where_the_run_is(step):
    class Sum(Quadratic):
        def loss(self, params, batch):
            return params["x"].sum()

    rule, task = Counting(), Sum(torch.tensor([1.0]))
    snapshot = RunSnapshot({"x": torch.zeros(1)}, rule.init_state({"x": torch.zeros(1)}, {}), task.roles, step, 100)
    batches = [[task.batch(generator(0))] for _ in range(5)]
    losses = pilot_losses(rule, stacked_theta([rule], 1), task, snapshot, batches, [task.batch(generator(0))])
    full = 2 if step == 0 else 1  # of steps 0 to 4, or 1 to 5
    assert float(losses) == pytest.approx(full + (5 - full) * 0.01)


def stepped(optimizer, weight, steps):
    for step in steps:
        weight.grad = torch.full_like(weight, float("nan") if step == 1 else 1.0)
        optimizer.step(loss=torch.tensor(1.0))


def test_an_optimizer_counts_its_calls():
    """A step that is skipped counts, since whether it was is not known without waiting; one without gradients not."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = LearnedOptimizer([weight], Counting())
    optimizer.step()
    stepped(optimizer, weight, range(STEPS))
    assert float(weight.detach()) == pytest.approx(EXPECTED - 0.01)


@pytest.mark.parametrize("rule", [Counting, lambda: rotated(3)], ids=["counting", "rotated"])
def test_stop_and_resume_is_no_stop_though_steps_were_skipped(rule):
    torch.manual_seed(0)
    weight, last = nn.Parameter(torch.randn(4, 3)), FIRST_TURNS + 9
    optimizer = LearnedOptimizer([weight], rule(), total_steps=40)
    stepped(optimizer, weight, range(FIRST_TURNS + 2))
    other = nn.Parameter(weight.detach().clone())
    resumed = LearnedOptimizer([other], rule(), total_steps=40)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, value in ((optimizer, weight), (resumed, other)):
        stepped(one, value, range(FIRST_TURNS + 2, last))
    assert optimizer.skipped_steps == resumed.skipped_steps == 1
    assert torch.equal(weight, other)


def rotated(every):
    return ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"], turn_every=every)


def test_bases_turn_in_the_first_steps_and_then_every_few():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = LearnedOptimizer([weight], rotated(3), total_steps=40)
    turned, covariances = [], []
    for step in range(FIRST_TURNS + 6):
        before = optimizer.state[weight] or optimizer.rule.init_state({"weight": weight}, {}).tensors["weight"]
        before = {key: value.clone() for key, value in before.items()}
        weight.grad = torch.randn(4, 3)
        optimizer.step(loss=torch.tensor(1.0))
        after = optimizer.state[weight]
        covariances.append(torch.equal(before["row_covariance"], after["row_covariance"]))
        if not torch.equal(before["row_basis"], after["row_basis"]):
            turned.append(step)
    assert turned == [*range(FIRST_TURNS), FIRST_TURNS + 1, FIRST_TURNS + 4]
    assert not any(covariances)


def test_turning_takes_a_period():
    assert rotated(3).period == 3
    assert ResidualRule(**{key: value for key, value in rotated(1).config.items() if key != "turn_every"}).period == 1
    with pytest.raises(ValueError, match="turn_every must be at least 1, got 0"):
        rotated(0)


@pytest.mark.slow
def test_no_step_is_a_slow_one():
    """After the first steps each one turns the bases of as many matrices; tracing would make some steps twice."""
    params = [nn.Parameter(torch.randn(100, 100)) for _ in range(8)]  # too large to be stacked on a CPU
    optimizer, work = LearnedOptimizer(params, rotated(4), total_steps=40, compile=False), []
    for _ in range(FIRST_TURNS + 8):
        for param in params:
            param.grad = torch.randn(100, 100)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        work.append(counter.get_total_flops())
    assert len(set(work[:FIRST_TURNS])) == len(set(work[FIRST_TURNS:])) == 1
    assert work[-1] < 0.5 * work[0]
