"""ResidualRule: what it is before meta-training, in closed form, for tensors of every rank."""

import math

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, ResidualRule, SGDRule, StepContext
from lightning_lopt.rules.shared.arithmetic import orthogonalise, unit_rms

SHAPES = {
    "scalar": (),
    "size1": (1,),
    "vector": (7,),
    "row": (1, 6),
    "column": (6, 1),
    "tall": (9, 4),
    "wide": (4, 9),
    "cube": (3, 4, 2),
    "conv": (5, 3, 2, 2),
    "conv1x1": (4, 6, 1, 1),
}


def tensors(seed, scale=1.0, dtype=torch.float64):
    draws = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=draws, dtype=dtype) for name, shape in SHAPES.items()}


def context(step, total=100, loss=1.0, **more):
    return StepContext(torch.tensor(float(step)), torch.tensor(float(total)), torch.tensor(loss), **more)


def run(rule, steps=5, scale=1.0, total=100, zero=False, initial=1.0):
    params = tensors(0, initial)
    state = rule.init_state(params, {})
    for step in range(steps):
        grads = tensors(step + 1, 0.0 if zero else scale)
        updates, state = rule(params, grads, state, context(step, total, scale))
        params = {name: params[name] + updates[name] for name in params}
    return params, updates


def plain_schedule(step, total):
    warmup = 0.05 * total
    return min(1.0, (step + 1) / warmup) * min(1.0, (total - step) / (total - warmup))


def test_theta_zero_is_the_hand_designed_rule():
    """Against a separate few lines that follow the formulas, for orthogonalised and for Adam tensors."""
    rule = ResidualRule().double()
    params, roles = tensors(0), {"tall": "head"}
    state = rule.init_state(params, roles)
    momentum = {name: torch.zeros_like(value) for name, value in params.items()}
    second = {name: torch.zeros_like(value) for name, value in params.items()}
    initial = {name: max(float(value.square().mean().sqrt()), 0.03) for name, value in params.items()}
    for step in range(8):
        grads = tensors(step + 1)
        updates, state = rule(params, grads, state, context(step, 40, roles=roles))
        for name, grad in grads.items():
            matrix = grad.ndim >= 2 and name != "tall"
            beta = 0.95 if matrix else 0.9
            momentum[name] = beta * momentum[name] + (1 - beta) * grad
            second[name] = 0.99 * second[name] + 0.01 * grad**2
            if matrix:
                average = momentum[name] / (1 - 0.95 ** (step + 1))
                nesterov = (0.95 * average + 0.05 * grad).reshape(grad.shape[0], -1)
                x = nesterov / nesterov.norm()
                for _ in range(5):
                    x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
                direction = x.reshape(grad.shape)
            else:
                direction = momentum[name] / (1 - 0.9 ** (step + 1))
                direction = direction / ((second[name] / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
            direction = direction / direction.square().mean().sqrt()
            expected = -0.02 * plain_schedule(step, 40) * (initial[name] * direction + 1e-3 * params[name])
            torch.testing.assert_close(updates[name], expected, rtol=1e-5, atol=1e-8)
        params = {name: params[name] + updates[name] for name in params}


@pytest.mark.parametrize("learned", [{}, {"direction": False}, {"controller": False}])
def test_untrained_networks_are_the_identity(learned):
    plain, _ = run(ResidualRule(direction=False, controller=False).double())
    other, _ = run(ResidualRule(**learned).double())
    for name in plain:
        torch.testing.assert_close(plain[name], other[name], rtol=1e-9, atol=1e-12)


def trained_rule():
    torch.manual_seed(0)
    rule = ResidualRule().double()
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return rule


def test_loss_scale_does_not_matter():
    one, _ = run(trained_rule(), scale=1.0)
    other, _ = run(trained_rule(), scale=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", [trained_rule(), AdamRule(), SGDRule()], ids=lambda rule: rule.rule_name)
def test_zero_gradients_give_finite_updates(rule):
    params, _ = run(rule, zero=True)
    assert all(value.isfinite().all() for value in params.values())
    huge, _ = run(trained_rule(), scale=1e25)
    assert all(value.isfinite().all() for value in huge.values())


def test_step_size_and_weight_decay_to_start_from():
    _, plain = run(ResidualRule(direction=False, controller=False).double(), steps=1)
    _, other = run(ResidualRule(direction=False, controller=False, step_size=0.04, weight_decay=0.5).double(), steps=1)
    schedule = plain_schedule(0, 100)
    for name, value in tensors(0).items():
        expected = 2 * plain[name] - 0.04 * schedule * (0.5 - 1e-3) * value
        torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-8)


def test_one_step_is_bounded_by_the_controller():
    """RMS of a step: at most step_range x 0.02 x the initial RMS, whatever the networks say."""
    torch.manual_seed(0)
    rule = ResidualRule(step_range=2.0).double()
    with torch.no_grad():
        for name, value in rule.named_parameters():
            if "constants" not in name:
                value.normal_(std=10.0)
        rule.constants.log_weight_decay.fill_(-50.0)
    _, updates = run(rule)
    for name, value in tensors(0).items():
        bound = 2.0 * 0.02 * max(float(value.square().mean().sqrt()), 0.03)
        assert float(updates[name].detach().square().mean().sqrt()) <= bound * (1 + 1e-6)


def test_conv_kernels_are_matrices_of_out_by_the_rest():
    x = tensors(3)["conv"]
    torch.testing.assert_close(orthogonalise(x), orthogonalise(x.reshape(5, 12)).reshape(x.shape))
    one = tensors(3)["conv1x1"]
    torch.testing.assert_close(orthogonalise(one).reshape(4, 6), orthogonalise(one.reshape(4, 6)))


def test_orthogonalise_flattens_the_spectrum():
    x = nn.init.orthogonal_(torch.empty(6, 6, dtype=torch.float64)) @ torch.diag(
        torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.02], dtype=torch.float64)
    )
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.65
    assert values.max() < 1.25
    assert orthogonalise(torch.zeros(3, 4)).eq(0).all()


def test_unit_rms():
    assert float(unit_rms(torch.tensor([3.0, 4.0])).square().mean()) == pytest.approx(1.0)
    assert math.isclose(float(unit_rms(torch.tensor(-5.0))), -1.0, rel_tol=1e-6)


def test_all_of_theta_gets_a_gradient():
    rule = trained_rule()
    for initial in (1.0, 0.01):  # above and below the floor of the RMS
        params, _ = run(rule, steps=8, total=20, initial=initial)
        sum(value.square().sum() for value in params.values()).backward()
    missing = [name for name, value in rule.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []


def test_step_sizes_fall_with_the_horizon_where_asked_for():
    """((T + 1000) / 1500)^-h: half the power gives the root, and at 500 steps nothing changes."""
    factors = {}
    for power in (None, 0.5, 1.0):
        constants = ResidualRule(horizon_power=power).double().constants
        for total in (500, 5000):
            context = StepContext(torch.tensor(total / 2.0).double(), torch.tensor(float(total)).double())
            factors[power, total] = float(constants.schedule(context)[0].detach())
    assert factors[0.5, 500] == factors[None, 500] == pytest.approx(0.5 / 0.95)
    assert factors[1.0, 5000] == pytest.approx(factors[None, 5000] / 4)
    assert factors[0.5, 5000] == pytest.approx(factors[None, 5000] / 2)


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_steps_grow_with_the_coherence_of_the_gradients(noise):
    """Gradients that agree have coherence 1; of independent ones the mean of n has 1 / sqrt(n) of their RMS."""
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[]).double()
    with torch.no_grad():
        rule.constants.coherence_power.fill_(1.0)
        rule.constants.log_weight_decay.fill_(-50.0)
    params = {"w": torch.ones(4000, dtype=torch.float64)}
    state, draws = rule.init_state(params, {}), torch.Generator().manual_seed(0)
    for step in range(300):
        grads = {"w": 1.0 + noise * torch.randn(4000, generator=draws, dtype=torch.float64)}
        updates, state = rule(params, grads, state, context(step, 1000))
    averaged = 0.1 / 1.9  # of the square of what is independent, by a momentum of 0.9
    coherence = math.sqrt((1 + noise**2 * averaged) / (1 + noise**2))
    expected = 0.02 * plain_schedule(299, 1000) * coherence / 0.3
    assert float(updates["w"].detach().square().mean().sqrt()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("growth", "step", "memory"), [(0.0, 50, 9.0), (0.5, 72, 27.0), (1.0, 72, 81.0), (0.5, 0, 9.0)]
)
def test_averages_remember_more_as_the_run_goes_on(growth, step, memory):
    constants = ResidualRule(orthogonalised=[], rotated=["matrix"]).double().constants
    averages = {"momentum": "momentum", "second_moment": "moment", "rotated_moment": "rotated"}
    with torch.no_grad():
        for name in averages:
            getattr(constants, f"logit_{name}").fill_(math.log(9.0))  # a decay of 0.9 remembers 9 steps
        constants.momentum_growth.fill_(growth)
        constants.moment_growth.fill_(growth)
    at = constants.at(context(step))["vector"]
    for short in averages.values():
        rate = float(getattr(at, f"{short}_rate").detach())
        assert (1 - rate) / rate == pytest.approx(memory, rel=1e-6)
        weight = at.momentum_weight if short == "momentum" else getattr(at, f"{short}_root").square()
        assert float(weight.detach()) == pytest.approx(1 - (1 - rate) ** (step + 1), rel=1e-6)


def test_a_momentum_of_larger_gradients_makes_no_longer_step():
    """Where the second moment has long forgotten them: a run of 25,000 steps diverged by that once."""
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[]).double()
    with torch.no_grad():
        rule.constants.coherence_power.fill_(1.0)
        rule.constants.momentum_growth.fill_(1.0)
        rule.constants.log_weight_decay.fill_(-50.0)
        rule.constants.logit_second_moment.fill_(math.log(9.0))  # 0.9: it forgets within tens of steps
    params = {"w": torch.ones(10, dtype=torch.float64)}
    state = rule.init_state(params, {})
    for step in range(400):
        grads = {"w": torch.full((10,), 1e6 if step < 200 else 1e-3, dtype=torch.float64)}
        updates, state = rule(params, grads, state, context(step, 1000))
        longest = 0.02 * plain_schedule(step, 1000) / 0.3
        assert float(updates["w"].detach().square().mean().sqrt()) <= longest * (1 + 1e-6)


def test_the_unit_of_gradients_is_a_power_of_two_of_the_first_that_are_not_zero():
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], calibrated=True)
    params = {name: value.float() for name, value in tensors(0).items()}
    state = rule.init_state(params, {})
    units = []
    for step, largest in enumerate((0.0, 3e-17, 5e-3)):
        grads = {name: torch.full_like(value, largest) for name, value in params.items()}
        updates, state = rule(params, grads, state, context(step))
        units.append(float(state.shared["gradient_unit"]))
    assert units == [0.0, 2.0**-55, 2.0**-55]
    assert all(update.isfinite().all() for update in updates.values())


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_gradients_whose_squares_underflow_or_overflow_train_alike(scale):
    """In float32, with orthogonalised and rotated tensors; a power of two changes no digit."""
    rule = ResidualRule(orthogonalised=["matrix"], rotated=["head"], calibrated=True)
    found = []
    for factor in (1.0, scale):
        params = {name: value.float() for name, value in tensors(0).items()}
        state = rule.init_state(params, {"tall": "head"})
        for step in range(5):
            grads = {name: factor * value.float() for name, value in tensors(step + 1).items()}
            updates, state = rule(params, grads, state, context(step, roles={"tall": "head"}))
            params = {name: params[name] + updates[name] for name in params}
        found.append(params)
    assert all(torch.equal(found[0][name], found[1][name]) for name in params)


def test_diagnostics_name_the_common_factor():
    rule = ResidualRule(direction=False, controller=False, calibrated=True)
    state = rule.init_state(tensors(0), {})
    assert rule.diagnostics(state)["calibration"] == 1.0
    state.shared["calibration"][0] = -math.log(2.0)
    assert float(rule.diagnostics(state)["calibration"]) == pytest.approx(0.5)
    assert ResidualRule(controller=False).diagnostics(ResidualRule(controller=False).init_state(tensors(0), {})) == {}


def test_diagnostics_say_how_trained_a_model_looked():
    rule = ResidualRule(direction=False, controller=False, careful=4.0)
    torch.manual_seed(0)
    params = {"new": torch.randn(32, 32), "trained": torch.randn(64, 2) @ torch.randn(2, 64)}
    assert rule.diagnostics(rule.init_state({"new": params["new"]}, {})) == {"trained": 0.0}
    assert 0.5 < float(rule.diagnostics(rule.init_state(params, {}))["trained"]) < 1.0  # 1 and between 0 and 1
