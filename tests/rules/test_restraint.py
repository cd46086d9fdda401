"""Steps that shorten where gradients vanish."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule, StepContext
from lightning_lopt.rules.residual_parts.restraint import LIMIT, RATE, Restraint, log_norm_of


def factors(sizes, power=1.0):
    restraint, memory, found = Restraint(power).double(), torch.zeros(3).double(), []
    for size in sizes:
        log_factor, memory = restraint(memory, torch.tensor(float(size)).double().log())
        found.append(math.exp(log_factor.item()))
    return found


def test_the_factor_is_that_of_the_formula():
    draws = torch.Generator().manual_seed(0)
    sizes = (torch.rand(60, generator=draws) * torch.linspace(1.0, 0.05, 60)).tolist()
    average = mean = 0.0
    expected = []
    for t, size in enumerate(sizes, 1):
        average += max(1 / t, RATE) * (math.log(size) - average)
        mean += (math.log(size) - mean) / t
        expected.append(math.exp(0.7 * min(average - mean, 0.0)))
    assert factors(sizes, 0.7) == pytest.approx(expected, rel=1e-6)
    assert min(expected) < 0.7


def test_vanishing_gradients_shorten_steps_and_steady_or_growing_ones_do_not():
    assert factors([2.0] * 100)[-1] == 1.0
    assert factors([1.02**t for t in range(200)])[-1] == 1.0
    assert factors([0.97**t for t in range(200)])[-1] < 0.1
    assert factors([t**-0.5 for t in range(1, 400)])[-1] > 0.55  # to exp(-0.5) = 0.61, whatever the number of steps


@pytest.mark.parametrize(
    ("epochs", "factor"),
    [(12.0, 1.0), (24.0, 0.5**0.8), (3.0, 4**0.8), (0.5, 8**0.8), (100.0, 2.5**-0.8), (math.nan, 1.0), (None, 1.0)],
)
def test_more_epochs_make_steps_shorter_by_a_power_within_limits(epochs, factor):
    restraint, memory = Restraint(epoch_power=0.8).double(), torch.zeros(3).double()
    given = None if epochs is None else torch.tensor(epochs)
    log_factor, _ = restraint(memory, torch.tensor(0.0).double(), given)
    assert math.exp(log_factor.item()) == pytest.approx(factor, rel=1e-6)
    log_factor, _ = Restraint().double()(memory, torch.tensor(0.0).double(), given)
    assert log_factor.item() == 0.0  # without a power, the epochs are not read


@pytest.mark.parametrize(("depth", "factor"), [(1.0, 1.0), (3.0, 1.0), (6.0, 0.5**0.8), (48.0, 16**-0.8), (None, 1.0)])
def test_more_matrices_make_steps_shorter_by_a_power(depth, factor):
    restraint, memory = Restraint(epoch_power=1.0, depth_power=0.8).double(), torch.zeros(3).double()
    given = None if depth is None else torch.tensor(depth)
    log_factor, _ = restraint(memory, torch.tensor(0.0).double(), torch.tensor(6.0), given)
    assert math.exp(log_factor.item()) == pytest.approx(2 * factor, rel=1e-6)


def test_a_single_gradient_does_not_set_it():
    steady = [1.0] * 200
    early = factors([1e6, *steady])
    assert min(early) > 0.75
    assert early[-1] > 0.9
    assert factors([*steady, 1e30, *steady])[-1] > 0.95
    assert factors([*steady, 0.0])[-1] == 1.0  # no gradient counts for nothing
    assert factors([0.0, 0.0, *steady])[-1] == 1.0
    assert min(factors([*steady, *[1e-30] * 400], 1.0)) >= math.exp(-LIMIT - 0.1)


def test_null_gradients_have_no_derivative():
    power = torch.zeros((), requires_grad=True)
    log_factor, memory = Restraint(1.0)(torch.zeros(3), log_norm_of(power, torch.tensor(1.0)))
    (log_factor + memory.sum()).backward()
    assert float(power.grad) == 0.0
    assert memory.tolist() == [0.0, 0.0, 0.0]


def test_steps_of_trained_tensors_shorten_and_those_of_new_ones_do_not():
    torch.manual_seed(0)
    config = {"direction": False, "controller": False, "orthogonalised": []}
    plain, careful = ResidualRule(**config), ResidualRule(**config, careful=3.0)
    # word vectors do not make a model a trained one, but are trained themselves
    params = {"words": torch.randn(64, 2) @ torch.randn(2, 64), "w": torch.randn(64, 64)}
    roles = {"words": "embedding"}
    states = {rule: rule.init_state(params, roles) for rule in (plain, careful)}
    updates, restraint, memory = {}, Restraint(), torch.zeros(3)
    for step in range(40):
        grads = {name: torch.randn(64, 64) * 0.8**step for name in params}
        log_factor, memory = restraint(memory, torch.stack(list(grads.values())).norm().log())
        for rule in (plain, careful):
            context = StepContext(torch.tensor(float(step)), torch.tensor(100.0), roles=roles)
            updates[rule], states[rule] = rule(params, grads, states[rule], context)
    factor = torch.exp(log_factor.detach() - 3.0)
    assert float(log_factor.detach()) < -1.5
    torch.testing.assert_close(updates[careful]["words"], updates[plain]["words"] * factor, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(updates[careful]["w"], updates[plain]["w"])


def test_epochs_change_the_steps_of_trained_tensors_alone():
    torch.manual_seed(0)
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], careful=3.0, epoch_power=1.0)
    params = {"words": torch.randn(64, 2) @ torch.randn(2, 64), "w": torch.randn(64, 64)}
    roles, grads = {"words": "embedding"}, {name: torch.randn(64, 64) for name in params}
    updates = {}
    for epochs in (None, 3.0, 24.0):
        context = StepContext(torch.tensor(0.0), torch.tensor(100.0), roles=roles)
        context = replace(context, epochs=None if epochs is None else torch.tensor(epochs))
        updates[epochs], _ = rule(params, grads, rule.init_state(params, roles), context)
    for epochs in (3.0, 24.0):
        expected = updates[None]["words"] * 12 / epochs
        torch.testing.assert_close(updates[epochs]["words"], expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(updates[epochs]["w"], updates[None]["w"])


def test_a_loss_times_a_constant_is_the_same_run():
    ends = []
    for scale in (1.0, 2.0**-40, 2.0**30):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        with torch.no_grad():
            net[0].weight.copy_(torch.outer(torch.randn(16), torch.randn(4)))  # looks trained
        x, y = torch.randn(8, 4), torch.randn(8, 1)
        rule = ResidualRule(direction=False, controller=False, orthogonalised=[], careful=1.0)
        optimizer = LearnedOptimizer(net, rule, total_steps=80)
        for _ in range(80):
            optimizer.zero_grad()
            (scale * (net(x) - y).square().mean()).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-3, atol=1e-4)
