"""Schedule-free AdamW, against the paper's algorithm written as a plain loop over z, x and y."""

import math

import pytest
import torch

from lightning_lopt import ScheduleFreeAdamRule, StepContext

TOTAL = 60


def gradient(y, step):
    """Of a noisy, badly conditioned bowl."""
    draws = torch.Generator().manual_seed(step)
    scales = torch.logspace(0, -2, y.numel(), dtype=torch.float64).reshape(y.shape)
    return scales * (y - 1) + 0.1 * torch.randn(y.shape, generator=draws, dtype=torch.float64)


def plain_loop(start, steps, lr, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0, warmup=0.0):
    """x and y after each step, as Algorithm 1 has it."""
    z, x, v, weights, points = start.clone(), start.clone(), torch.zeros_like(start), 0.0, []
    y = (1 - beta1) * z + beta1 * x
    for t in range(1, steps + 1):
        grad = gradient(y, t - 1)
        v = beta2 * v + (1 - beta2) * grad**2
        gamma = lr * math.sqrt(1 - beta2**t) * (min(1.0, t / (warmup * TOTAL)) if warmup else 1.0)
        z = z - gamma * grad / (v.sqrt() + eps) - gamma * decay * y
        weights += gamma**2
        c = gamma**2 / weights
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x
        points.append((x, y))
    return points


@pytest.mark.parametrize(
    "options", [{}, {"warmup": 0.3, "decay": 0.1}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3}], ids=str
)
def test_equals_a_plain_loop(options):
    given = {"warmup": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decay": 0.0, **options}
    betas = (given["beta1"], given["beta2"])
    rule = ScheduleFreeAdamRule(0.1, betas, given["eps"], given["decay"], given["warmup"]).double()
    with torch.no_grad():
        rule.log_lr.fill_(math.log(0.1))  # in float64
    params = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)}
    state = rule.init_state(params, {})
    for step, (x, y) in enumerate(plain_loop(params["w"], TOTAL, 0.1, **given)):
        context = StepContext(torch.tensor(step).double(), torch.tensor(TOTAL).double())
        updates, state = rule(params, {"w": gradient(params["w"], step)}, state, context)
        params = {"w": params["w"] + updates["w"]}
        torch.testing.assert_close(params["w"], y, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(rule.evaluation_params(params, state)["w"], x, rtol=1e-10, atol=1e-12)


def test_before_the_first_step_all_points_are_one():
    rule, params = ScheduleFreeAdamRule(), {"w": torch.randn(5)}
    torch.testing.assert_close(rule.evaluation_params(params, rule.init_state(params, {})), params)


def test_a_parameter_without_gradients_waits():
    """Its average starts when its gradients do, as if there had been no steps before (but for the warm-up)."""
    rule = ScheduleFreeAdamRule(0.1, warmup=0.0)
    params = {"w": torch.ones(3), "late": torch.ones(3)}
    state = rule.init_state(params, {})
    for step in range(4):
        context = StepContext(torch.tensor(float(step)), torch.tensor(10.0))
        grads = {"w": torch.ones(3)} | ({"late": torch.ones(3)} if step >= 2 else {})
        updates, new = rule({name: params[name] for name in grads}, grads, state, context)
        state = state._replace(tensors=state.tensors | new.tensors)
        params = params | {name: params[name] + value for name, value in updates.items()}
        if step == 1:
            after_two = params["w"]
    assert torch.equal(params["late"], after_two)


def test_bad_constants():
    with pytest.raises(ValueError, match="betas"):
        ScheduleFreeAdamRule(betas=(0.0, 0.9))
    with pytest.raises(ValueError, match="warmup"):
        ScheduleFreeAdamRule(warmup=1.5)
