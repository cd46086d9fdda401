"""Bias and standard deviation of every estimator of the meta-gradient, against the length of a truncation.

    python examples/research/estimator_variance.py               # some minutes on one core; writes a picture
    python examples/research/estimator_variance.py --draws 4     # a rough result in seconds

The meta-gradient of two unrolls of 64 steps is known by other means:

- *bowl*: gradient descent on a noisy quadratic with a steep and a flat direction; θ is the logarithm of the learning
  rate. In a short run, the steep direction favours a small learning rate; in a long run, the flat direction favours a
  large one (Wu et al. 2018).
- *chaos*: the logistic map x ← r x (1 - x) at r = 3.7, with θ = r. The exact gradient of one run explodes with the
  length of the run; the gradient of the loss smoothed over r does not (Metz et al. 2021,
  https://arxiv.org/abs/2111.05803).

One *estimate* is the mean over a whole run of the estimates of one antithetic pair (or one run, for TruncatedBackprop).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lopt import MetaLoss, SGDRule
from lightning_lopt.meta import NRES, PES, Estimator, FullES, TruncatedBackprop, TruncatedES
from lightning_lopt.rules import StepContext, UpdateRule
from lightning_lopt.rules.base import Role, TensorInputs
from lightning_lopt.tasks import Quadratic, Task

HORIZON = 64
TRUNCATIONS = (2, 4, 8, 16, 32, 64)
ESTIMATORS: dict[str, Callable[[int, int, float], Estimator]] = {
    "FullES": lambda k, terms, sigma: FullES(terms, sigma, MetaLoss(cap=None)),
    "TruncatedES": lambda k, terms, sigma: TruncatedES(k, terms, sigma, MetaLoss(cap=None)),
    "PES": lambda k, terms, sigma: PES(k, terms, sigma, MetaLoss(cap=None)),
    "NRES": lambda k, terms, sigma: NRES(k, terms, sigma, MetaLoss(cap=None)),
    "TruncatedBackprop": lambda k, terms, sigma: TruncatedBackprop(k, terms, MetaLoss(cap=None)),
    "TruncatedBackprop, clip 0.1": lambda k, terms, sigma: TruncatedBackprop(k, terms, MetaLoss(cap=None), clip=0.1),
}


class LogisticRule(UpdateRule):
    """x ← r x (1 - x), a "rule" that ignores gradients and has chaotic runs; θ is r."""

    def __init__(self, r: float) -> None:
        super().__init__()
        self.r = torch.nn.Parameter(torch.tensor(r))

    @property
    def config(self) -> dict[str, Any]:
        return {"r": float(self.r)}

    def init_tensor(self, param: Tensor, role: Role) -> dict[str, Tensor]:
        return {}

    def step(
        self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.r * inputs.param * (1 - inputs.param) - inputs.param, {}


class Coordinate(Task):
    """A number, initially between 0.2 and 0.8, whose value is the loss."""

    def __init__(self) -> None:
        self.name, self.roles, self.config = "coordinate", {"x": "vector"}, {}

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": 0.2 + 0.6 * torch.rand((), generator=generator, dtype=torch.float64)}

    def draw(self, generator: torch.Generator, *lead: int, split: str = "train") -> dict[str, Tensor]:
        return {"empty": torch.zeros(*lead, 1)}

    def full_batch(self, split: str) -> dict[str, Tensor]:
        return {"empty": torch.zeros(1)}

    def loss(self, params: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return params["x"] + 0 * batch["empty"].sum()


def bowl() -> tuple[UpdateRule, Task, float, float]:
    """Rule, task, σ, and the exact gradient by finite differences of the expected losses, smoothed over θ."""
    lr, sigma = 0.4, 0.05
    start = torch.tensor([0.3, 5.0], dtype=torch.float64)
    task = Quadratic(torch.tensor([1.0, 0.02], dtype=torch.float64), noise=0.5, start=start)
    task.loss_scale = 1.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)

    def smoothed(theta: float) -> float:
        losses = [float(task.expected_losses(float(np.exp(theta + sigma * z)), HORIZON)[:-1].mean()) for z in nodes]
        return float(np.dot(weights, losses) / weights.sum())

    exact = (smoothed(np.log(lr) + 1e-4) - smoothed(np.log(lr) - 1e-4)) / 2e-4
    return SGDRule(lr, momentum=0.0).double(), task, sigma, exact


def chaos() -> tuple[UpdateRule, Task, float, float]:
    """Rule, task, σ and exact gradient of the logistic map: E[f(r + ε) ε] / σ² on a grid of ε and initial values."""
    r, sigma = 3.7, 0.05
    grid = np.linspace(-5, 5, 20001)[:, None]
    x, total = np.linspace(0.2, 0.8, 100)[None, :], 0.0
    for _ in range(HORIZON):
        total = total + x / HORIZON
        x = (r + sigma * grid) * x * (1 - x)
    density = np.exp(-0.5 * grid[:, 0] ** 2)
    exact = float((total.mean(1) * grid[:, 0] * density).sum() / density.sum() / sigma)
    return LogisticRule(r).double(), Coordinate(), sigma, exact


def measure(
    estimator: Estimator, rule: UpdateRule, task: Task, draws: int, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the estimates, its standard error, and the standard deviation of the estimate of one pair (or run)."""
    share = getattr(estimator, "truncation", HORIZON) / HORIZON
    means = np.zeros(draws)
    for draw in range(draws):
        runs = estimator.start(rule, task, horizon=HORIZON, seed=draw)
        while not runs.finished:
            estimate = estimator.estimate(rule, [runs])
            (runs,) = estimate.groups
            means[draw] += share * float(estimate.gradient)
    error = means.std(ddof=1) / draws**0.5
    return float(means.mean()), float(error), float(error * (draws * estimator.terms) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=24, help="estimates of --terms pairs each")
    parser.add_argument("--terms", type=int, default=128, help="antithetic pairs (or runs) in parallel")
    parser.add_argument("--out", default="estimator_variance.png", help="file of the picture")
    arguments = parser.parse_args()

    results: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    exacts = {}
    for problem, make in (("bowl", bowl), ("chaos", chaos)):
        rule, task, sigma, exact = make()
        exacts[problem] = exact
        print(f"\n{problem}: exact smoothed gradient {exact:.4g}\n{'mean ± standard error (std of one pair)':>58}")
        print(f"{'truncation':28}" + "".join(f"{k:>27}" for k in TRUNCATIONS))
        results[problem] = {}
        for name, build in ESTIMATORS.items():
            lengths = TRUNCATIONS[-1:] if name == "FullES" else TRUNCATIONS
            rows = [measure(build(k, arguments.terms, sigma), rule, task, arguments.draws) for k in lengths]
            results[problem][name] = rows = rows * (len(TRUNCATIONS) // len(rows))
            cells = (f"{mean:.3g} ± {error:.1g} ({std:.2g})" for mean, error, std in rows)
            print(f"{name:28}" + "".join(f"{cell:>27}" for cell in cells), flush=True)
    plot(results, exacts, arguments.out)


def plot(results: dict[str, dict[str, list[tuple[float, float, float]]]], exacts: dict[str, float], out: str) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plotting needs matplotlib: pip install -e ".[examples]"') from error

    figure, axes = plt.subplots(2, len(results), figsize=(11, 7), sharex=True, squeeze=False)
    for column, (problem, rows_by_name) in enumerate(results.items()):
        exact = exacts[problem]
        for name, rows in rows_by_name.items():
            mean, error, std = (np.array(values) for values in zip(*rows, strict=True))
            axes[0, column].errorbar(TRUNCATIONS, mean / abs(exact), 2 * error / abs(exact), label=name, marker="o")
            axes[1, column].plot(TRUNCATIONS, np.maximum(std / abs(exact), 1e-3), label=name, marker="o")
        axes[0, column].axhline(np.sign(exact), color="black", linewidth=1)
        axes[0, column].set(title=problem, xscale="log", ylim=(-6, 6), ylabel="mean / |exact|")
        axes[1, column].set(yscale="log", xlabel="truncation (horizon 64)", ylabel="std of one pair / |exact|")
        axes[1, column].set_xticks(TRUNCATIONS, map(str, TRUNCATIONS))
        axes[1, column].minorticks_off()
    axes[0, 0].legend(fontsize="small", loc="upper right")
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    print(f"\nsaved {out}")


if __name__ == "__main__":
    main()
