"""Estimators against the exact gradient of the smoothed meta-loss, and against plain loops."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from lightning_lopt import PES, AdamRule, FullES, MetaLoss, ResidualRule, SGDRule
from lightning_lopt.meta import start_runs, unroll
from lightning_lopt.rules import StepContext
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic

HORIZON, TRUNCATION, SIGMA, LR = 8, 2, 0.1, 0.2


def smoothed_meta_gradient(persistent: bool) -> float:
    """d/dθ E mean_t L_t for SGD at learning rate exp(θ + ε), by Gauss-Hermite quadrature (independent of the engine).

    On ½ Σ h x², x_t = x_0 Π (1 - h exp(θ + ε_k)). With one ε for each truncation (PES) the factors are independent.
    """
    curvature, theta = np.array([1.0, 4.0]), np.log(LR)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def mean_loss(centre: float) -> float:
        factor = 1 - curvature[:, None] * np.exp(centre + SIGMA * nodes)  # (D, nodes)
        total = 0.0
        for t in range(HORIZON):
            if persistent:
                whole, rest = divmod(t, TRUNCATION)
                power = (factor ** (2 * TRUNCATION) @ weights) ** whole * (factor ** (2 * rest) @ weights)
            else:
                power = factor ** (2 * t) @ weights
            total += float((0.5 * curvature * power).sum())
        return total / HORIZON

    step = 1e-4
    return (mean_loss(theta + step) - mean_loss(theta - step)) / (2 * step)


@pytest.mark.parametrize("estimator", [FullES, PES], ids=lambda cls: cls.name)
def test_unbiased_on_a_quadratic(estimator):
    task = Quadratic(torch.tensor([1.0, 4.0], dtype=torch.float64))
    task.loss_scale = 1.0
    rule = SGDRule(LR, momentum=0.0).double()
    draws, estimates = 400, []
    settings = {"pairs": 64, "sigma": SIGMA, "meta_loss": MetaLoss(cap=None)}
    one = estimator(**settings) if estimator is FullES else PES(TRUNCATION, **settings)
    for draw in range(draws):
        runs = one.start(rule, task, horizon=HORIZON, seed=draw)
        total, truncations = 0.0, 0
        while not runs.finished:
            estimate = one.estimate(rule, runs)
            runs, truncations = estimate.runs, truncations + 1
            total += float(estimate.gradient["log_lr"])
        # PES adds up (1/K) Σ_t over truncations; the meta-loss is the mean over the horizon
        estimates.append(total * (TRUNCATION / HORIZON if estimator is PES else 1.0))
    estimates = np.array(estimates)
    error = abs(estimates.mean() - smoothed_meta_gradient(estimator is PES))
    standard_error = estimates.std() / draws**0.5
    assert error < 4 * standard_error
    assert standard_error < 0.05 * abs(smoothed_meta_gradient(estimator is PES))  # the test can see a bias of 20 %


@pytest.mark.parametrize(
    "rule",
    [AdamRule(0.01), ResidualRule(), ResidualRule(orthogonalised=["matrix", "head"])],
    ids=["adam", "residual", "orthogonalised-head"],
)
def test_vmapped_unroll_equals_a_plain_loop(rule):
    torch.manual_seed(0)
    task = ImageMLP(depths=(2,), widths=(16,), batch_sizes=(16,), variety=False).sample(generator(3))
    theta = {name: value.detach() for name, value in rule.named_parameters()}
    noise = {name: 0.1 * torch.randn(4, *value.shape) for name, value in theta.items()}
    particles = {name: value + noise[name] for name, value in theta.items()}
    runs = start_runs(rule, task, pairs=2, horizon=12, seed=5)
    after, losses = unroll(rule, particles, runs, 6, generator(9))

    draws = generator(9)
    batches = [task.batch(draws, 2) for _ in range(6)]
    for particle in range(4):
        params = {name: value[particle] for name, value in runs.params.items()}
        state = rule.init_state(params, task.roles)
        own = {name: value[particle] for name, value in particles.items()}
        for step, batch in enumerate(batches):
            params = {name: value.detach().requires_grad_() for name, value in params.items()}
            loss = task.loss(params, {name: value[particle % 2] for name, value in batch.items()})
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
            context = StepContext(torch.tensor(float(step)), torch.tensor(12.0), loss.detach(), task.roles)
            with torch.no_grad():
                updates, state = functional_call(rule, own, (params, grads, state, context))
                params = {name: value + updates[name] for name, value in params.items()}
            torch.testing.assert_close(losses[0, step, particle], loss.detach(), rtol=1e-5, atol=1e-5)
        for name, value in params.items():
            torch.testing.assert_close(after.params[name][particle], value, rtol=1e-5, atol=1e-5)


def test_a_diverging_particle_is_counted_and_capped():
    task = Quadratic(torch.tensor([1.0, 1000.0]), start=1e20)
    estimate = PES(5, pairs=2).estimate(SGDRule(10.0), PES(5, pairs=2).start(SGDRule(10.0), task, horizon=20, seed=0))
    assert estimate.failures == 4
    assert all(value.isfinite().all() for value in estimate.gradient.values())
    assert float(estimate.meta_loss) == pytest.approx(1.5)
