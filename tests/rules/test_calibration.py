"""Calibration by plain lines of arithmetic, and what it does to steps that are far too long or too short."""

import math

import pytest
import torch

from lightning_lopt import ResidualRule
from lightning_lopt.rules import StepContext
from lightning_lopt.rules.calibration import HIGHEST, LOWEST, Calibration

ROLES = {"w": "vector", "m": "matrix"}


def context(step, total, loss):
    return StepContext(torch.tensor(float(step)), torch.tensor(float(total)), torch.as_tensor(loss), ROLES)


def test_factor_by_hand():
    calibration, memory, log_factor = Calibration(0.5, 0.25, 0.02).double(), torch.zeros(2).double(), 0.0
    losses = [2.0, 1.0, 0.05, 3.0, 1.5]
    products = [0.0, 0.1, 0.004, -0.09, 2.0]  # of gradient and last update
    for step, (loss, product) in enumerate(zip(losses, products, strict=True)):
        promise = max(-0.3, min(0.3, -product / max(loss, 0.05 * losses[0])))
        log_factor += 0.5 * min(promise + 0.02, 0.0) + 0.25 * max(promise, 0.0)
        grads = {"a": torch.tensor([product, 1.0]).double(), "b": torch.tensor(2.0).double()}
        last = {"a": torch.tensor([0.5, 0.0]).double(), "b": torch.tensor(product / 4).double()}
        factor, memory = calibration(memory, grads, last, context(step, 9, loss))
        assert float(factor) == pytest.approx(math.exp(log_factor), rel=1e-6)
    assert float(memory[1]) == losses[0]


@pytest.mark.parametrize(("product", "end"), [(1.0, LOWEST), (-1.0, HIGHEST)])
def test_factor_is_bounded(product, end):
    calibration, memory = Calibration(), torch.zeros(2)
    for step in range(1000):
        factor, memory = calibration(
            memory, {"a": torch.tensor(product)}, {"a": torch.tensor(1.0)}, context(step, 9, 1.0)
        )
    assert float(factor) == pytest.approx(math.exp(end))


def test_without_a_loss_it_says_so():
    with pytest.raises(ValueError, match="a calibrated ResidualRule reads the loss"):
        Calibration()(torch.zeros(2), {}, {}, StepContext(torch.tensor(0.0), torch.tensor(9.0)))


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
        updates, state = rule(params, grads, state, context(step, steps, loss_of(params)))
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
    updates = [each(params, params, each.init_state(params, ROLES), context(0, 10, 1.0))[0] for each in (one, other)]
    assert all(torch.equal(updates[0][name], updates[1][name]) for name in params)
