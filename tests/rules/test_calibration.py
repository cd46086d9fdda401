"""Calibration by plain lines of arithmetic, and what it does to steps that are far too long or too short."""

import math

import pytest
import torch

from lightning_lopt import ResidualRule
from lightning_lopt.rules import StepContext
from lightning_lopt.rules.residual_parts.calibration import HIGHEST, LEAST, LOWEST, MOST, Calibration, promise

ROLES = {"w": "vector", "m": "matrix"}


def context(step, total, loss=None):
    return StepContext(torch.tensor(float(step)), torch.tensor(float(total)), loss, ROLES)


def test_factors_by_hand():
    calibration, memory = Calibration(0.5, 0.25, 0.02, 0.125).double(), torch.zeros(2).double()
    factors = torch.zeros(2).double()
    common, promised, expected = 0.0, 0.0, [0.0, 0.0]
    promises_of_a, promises_of_b = (
        [0.0, -0.05, 0.08, -0.004, 0.2, -2.0, -0.1],
        [0.0, 0.01, 0.02, 0.01, -0.1, -0.5, 0.04],
    )
    for step, both in enumerate(zip(promises_of_a, promises_of_b, strict=True)):
        gained = max(sum(both), 0.0)
        promised *= step / (step + 1)
        promised += min(gained, promised) if promised > 0 else gained
        unit = promised or abs(sum(both)) or 1.0
        share = max(-0.3, min(0.3, sum(both) / unit))
        common += 0.5 * min(share + 0.02, 0.0) + 0.25 * max(share, 0.0)
        for row in range(2):
            expected[row] += 0.125 * (max(-0.3, min(0.3, 2 * both[row] / unit)) - share)
        logarithm, memory, factors = calibration(
            memory, factors, torch.tensor(both).double(), torch.tensor(float(step))
        )
        assert float(logarithm.detach()) == pytest.approx(common, rel=1e-6)
        assert factors.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert float(memory[1].detach()) == pytest.approx(promised)


def test_a_promise_is_what_repeating_the_update_gains():
    grad, last = torch.tensor([0.5, 1.0]), torch.tensor([1.0, -2.0])
    assert float(promise(grad, last)) == 1.5


def test_where_nothing_good_was_promised_yet_steps_shorten_and_gradients_are_finite():
    calibration, memory = Calibration(shrink=0.5, tolerance=0.1), torch.zeros(2)
    last = torch.ones(1, requires_grad=True)
    promises = promise(torch.tensor([5.0]), last)[None]
    logarithm, _, _ = calibration(memory, torch.zeros(1), promises, torch.tensor(1.0))
    logarithm.backward()
    assert float(logarithm.detach()) == pytest.approx(0.5 * (0.1 - 0.3))
    assert float(last.grad) == 0.0  # clipped


@pytest.mark.parametrize(("promised", "end"), [(-1.0, LOWEST), (1.0, HIGHEST)])
def test_common_factor_is_bounded(promised, end):
    calibration, memory, factors = Calibration(grow=10.0), torch.zeros(2), torch.zeros(1)
    for step in range(300):
        logarithm, memory, factors = calibration(memory, factors, torch.tensor([promised]), torch.tensor(float(step)))
    assert float(logarithm.detach()) == pytest.approx(end)
    assert float(factors.detach()) == 0.0  # alone, it is no different from the whole


def test_factors_of_tensors_are_bounded():
    calibration, memory, factors = Calibration(balance=10.0), torch.zeros(2), torch.zeros(2)
    for step in range(300):
        _, memory, factors = calibration(memory, factors, torch.tensor([-1.0, 1.5]), torch.tensor(float(step)))
    assert factors.tolist() == pytest.approx([LEAST, MOST])


def test_one_wrong_gradient_does_not_set_the_unit():
    calibration, memory, factors = Calibration(), torch.zeros(2), torch.zeros(1)
    for step in range(10):
        _, memory, factors = calibration(memory, factors, torch.ones(1), torch.tensor(float(step)))
    before = float(memory[1].detach())
    for step, wrong in enumerate((1e6, -1e6), 10):
        _, memory, factors = calibration(memory, factors, torch.tensor([wrong]), torch.tensor(float(step)))
    assert before < float(memory[1].detach()) <= 2 * before


def minimise(rule, scale=1.0, steps=300, curvature=(1.0, 30.0)):
    """Loss after ``steps`` on a noiseless quadratic in 2 x 4 entries, and the factor at the end."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.linspace(math.log(curvature[0]), math.log(curvature[1]), 4).exp().double()
    params = {"m": torch.randn(2, 4, generator=draws).double(), "w": torch.randn(4, generator=draws).double()}
    state = rule.init_state(params, ROLES)

    def loss_of(params):
        return scale * 0.5 * sum((rows * value.square()).sum() for value in params.values())

    for step in range(steps):
        grads = {name: scale * rows * value for name, value in params.items()}
        updates, state = rule(params, grads, state, context(step, steps))
        params = {name: (value + updates[name]).detach() for name, value in params.items()}
    return float(loss_of(params).detach()) / scale, state.shared.get("calibration", torch.zeros(2))[0].detach()


def rule(calibrated, step_size):
    return ResidualRule(
        direction=False, controller=False, orthogonalised=[], step_size=step_size, calibrated=calibrated
    ).double()


def test_steps_that_are_far_too_long_become_shorter():
    """Ten times the size of the parameters a step: without calibration the run ends where the schedule ends."""
    plain, _ = minimise(rule(False, 3.0))
    calibrated, log_factor = minimise(rule(True, 3.0))
    assert calibrated < 0.2 * plain
    assert float(log_factor) < -0.5


def test_steps_that_are_too_short_become_longer():
    plain, _ = minimise(rule(False, 1e-3), steps=100)
    calibrated, log_factor = minimise(rule(True, 1e-3), steps=100)
    assert calibrated < plain
    assert float(log_factor) > 0.005


def test_the_unit_of_the_loss_does_not_matter():
    one, other = minimise(rule(True, 0.3), steps=30), minimise(rule(True, 0.3), scale=1e-4, steps=30)
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    assert float(one[1]) == pytest.approx(float(other[1]), rel=1e-4)
    assert abs(float(one[1])) > 0.01


def test_before_the_first_update_it_changes_nothing():
    one, other = rule(False, 0.1), rule(True, 0.1)
    params = {"m": torch.ones(2, 4).double(), "w": torch.ones(4).double()}
    updates = [each(params, params, each.init_state(params, ROLES), context(0, 10))[0] for each in (one, other)]
    assert all(torch.equal(updates[0][name], updates[1][name]) for name in params)
