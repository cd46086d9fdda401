"""Every estimator against the exact value of what it estimates, on bowls, by quadrature that shares no code with it."""

import numpy as np
import pytest
import torch

from lightning_lopt import PES, FullES, MetaLoss, SGDRule
from lightning_lopt.meta import NRES, ESSingle, TruncatedBackprop, TruncatedES
from lightning_lopt.tasks import Quadratic

CURVATURE, HORIZON, TRUNCATION, SIGMA, LR = (1.0, 4.0), 8, 2, 0.1, 0.2
UNCAPPED = MetaLoss(cap=None)


def bowl(**settings):
    task = Quadratic(torch.tensor(CURVATURE, dtype=torch.float64), **settings)
    task.loss_scale = 1.0
    return task


def run_averages(estimator, task, horizon, draws, lr=LR):
    """Average over a whole run of the estimates of d/d log lr, for each of ``draws`` seeds."""
    rule = SGDRule(lr, momentum=0.0).double()
    torch.nn.init.constant_(rule.log_lr, np.log(lr))  # not rounded to float32
    share = 1.0 if isinstance(estimator, FullES) else estimator.truncation / horizon
    averages = np.zeros(draws)
    for seed in range(draws):
        runs = estimator.start(rule, task, horizon=horizon, seed=seed)
        while not runs.finished:
            estimate = estimator.estimate(rule, [runs])
            (runs,) = estimate.groups
            averages[seed] += share * float(estimate.gradient)
    return averages


def derivative(function, at, step=1e-4):
    return (function(at + step) - function(at - step)) / (2 * step)


def smoothed(persistent, truncated=False):
    """d/dθ E mean_t L_t of ½ Σ h x² for x_t = x_0 Π (1 - h exp(θ + ε_k)), by Gauss-Hermite quadrature.

    ``persistent``: a new ε_k for each truncation, else one for the run. ``truncated``: the derivative reaches the ε of
    a truncation alone, and what lies before it is a factor that does not depend on θ.
    """
    curvature = np.array(CURVATURE)[:, None]
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def moment(theta, power):
        return (1 - curvature * np.exp(theta + SIGMA * nodes)) ** power @ weights

    def mean_loss(theta):
        total = 0.0
        for t in range(HORIZON):
            whole, rest = divmod(t, TRUNCATION)
            if truncated:
                square = moment(np.log(LR), 2 * TRUNCATION) ** whole * moment(theta, 2 * rest)
            elif persistent:
                square = moment(theta, 2 * TRUNCATION) ** whole * moment(theta, 2 * rest)
            else:
                square = moment(theta, 2 * t)
            total += float((0.5 * curvature[:, 0] * square).sum())
        return total / HORIZON

    return derivative(mean_loss, np.log(LR))


SETTINGS = {"pairs": 1024, "sigma": SIGMA, "meta_loss": UNCAPPED}
CASES = {
    "full_es": (FullES(**SETTINGS), smoothed(persistent=False)),
    "pes": (PES(TRUNCATION, **SETTINGS), smoothed(persistent=True)),
    "nres": (NRES(TRUNCATION, **SETTINGS), smoothed(persistent=False)),
    "es_single": (ESSingle(TRUNCATION, **SETTINGS), smoothed(persistent=False)),
    "truncated_es": (TruncatedES(TRUNCATION, **SETTINGS), smoothed(persistent=True, truncated=True)),
    "truncated_es_whole": (TruncatedES(HORIZON, **SETTINGS), smoothed(persistent=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_mean_is_what_it_should_be(case):
    estimator, exact = CASES[case]
    averages = run_averages(estimator, bowl(), HORIZON, draws=15)
    standard_error = averages.std(ddof=1) / len(averages) ** 0.5
    assert abs(averages.mean() - exact) < 4 * standard_error
    assert standard_error < 0.05 * abs(exact)  # so that a bias of 20 % would be seen
    if case == "truncated_es":  # what a step does for later truncations gets no credit
        assert abs(exact) < 0.75 * abs(smoothed(persistent=True))


def test_truncated_backprop_is_exact_on_a_whole_run():
    estimator = TruncatedBackprop(HORIZON, runs=2, meta_loss=UNCAPPED)
    task, theta = bowl(), torch.tensor(np.log(LR), requires_grad=True)
    exact = torch.autograd.grad(task.expected_losses(theta.exp(), HORIZON)[:-1].mean(), theta)[0]
    assert run_averages(estimator, task, HORIZON, draws=1)[0] == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("clip", [None, 1e9, 1.0, 0.1])
def test_truncated_backprop_is_the_chain_rule_within_a_truncation(clip):
    """Against a hand-written backward recursion of the adjoint a_t = dL/dx_t, clipped between steps."""
    horizon, truncation = 9, 4
    curvature, lr, x = np.array(CURVATURE), LR, np.ones(2)
    exact = 0.0
    for first in range(0, horizon, truncation):
        xs = [x * (1 - lr * curvature) ** k for k in range(min(truncation, horizon - first) + 1)]
        adjoint = np.zeros(2)
        for value in reversed(xs[:-1]):
            if clip is not None:
                adjoint = adjoint * min(1.0, clip / max(np.linalg.norm(adjoint), 1e-300))
            exact += float(adjoint @ (-lr * curvature * value))
            adjoint = curvature * value + adjoint * (1 - lr * curvature)
        x = xs[-1]
    limit = None if clip is None else clip / truncation  # the estimate is that of the mean over a truncation
    estimator = TruncatedBackprop(truncation, runs=1, meta_loss=UNCAPPED, clip=limit)
    average = run_averages(estimator, bowl(), horizon, draws=1)[0]
    assert average == pytest.approx(exact / horizon, rel=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [
        TruncatedES(8, pairs=1024, sigma=0.05, meta_loss=UNCAPPED),
        TruncatedBackprop(8, runs=2048, meta_loss=UNCAPPED),
        NRES(8, pairs=1024, sigma=0.05, meta_loss=UNCAPPED),
    ],
    ids=lambda estimator: estimator.name,
)
def test_short_horizon_bias(estimator):
    """A flat coordinate far away wants a large learning rate, noise in a steep one a small one: the near-sighted
    estimators see the noise alone and get the sign wrong (Wu et al. 2018)."""
    horizon, lr = 64, 0.4
    task = Quadratic(
        torch.tensor([1.0, 0.02], dtype=torch.float64), noise=0.5, start=torch.tensor([0.3, 5.0], dtype=torch.float64)
    )
    task.loss_scale = 1.0
    exact = derivative(lambda theta: float(task.expected_losses(float(np.exp(theta)), horizon)[:-1].mean()), np.log(lr))
    averages = run_averages(estimator, task, horizon, draws=8, lr=lr)
    standard_error = averages.std(ddof=1) / len(averages) ** 0.5
    assert exact < -0.01
    if isinstance(estimator, NRES):
        assert averages.mean() < -4 * standard_error
    else:
        assert averages.mean() > 4 * standard_error
        assert averages.mean() - exact > 0.02
