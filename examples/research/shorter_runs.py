"""Compare `base` with a shorter horizon with tuned AdamW with the full horizon.

python examples/research/shorter_runs.py

The speed-up of reports is the step at which a run of the same horizon reaches the final loss of AdamW. The steps of
this run are still long at that time. Here, the runs are planned for a share of the horizon, and end with short steps.
For each problem of the suite, the script prints the speed-up of reports and, for each divisor of the horizon, the share
of seeds that end at or below tuned AdamW in training / validation. At the end, it prints means, and the IQM of the
largest divisor up to which a seed ends at or below AdamW (0 if no divisor does).
"""

from __future__ import annotations

import argparse

import torch

from lightning_lopt import load_rule
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.evaluation.metrics import iqm, smoothed, step_speedup
from lightning_lopt.evaluation.suites import make_suite

FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="base")
    parser.add_argument("--suite", default="small")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rule, tuned = load_rule(arguments.rule), Baselines(seeds=arguments.seeds)
    speedups, below = [], []  # shapes (S,) and (factors, 2, S) for each problem
    for problem in make_suite(arguments.suite):
        adamw, scale = tuned(problem, "adamw"), problem.task.loss_scale
        runs = [
            run_rules([rule], problem, horizon=round(problem.horizon / factor), seeds=arguments.seeds)[0]
            for factor in FACTORS
        ]
        speedups.append(step_speedup(runs[0], adamw, scale))
        target = smoothed(adamw, scale)[-1] + 1e-9
        reached = [(smoothed(run, scale)[-1] <= target, run.final_valid <= adamw.final_valid) for run in runs]
        below.append(torch.stack([torch.stack(pair).float() for pair in reached]))
        print(f"{problem.name:20s} {float(speedups[-1].mean()):.2f}", *_pairs(below[-1].mean(-1)), sep="  ", flush=True)
    every = torch.stack(below)
    largest = (torch.tensor(FACTORS)[:, None] * every[:, :, 0].cumprod(1)).amax(1)
    print("horizon divided by  ", *(f"{factor:>11g}" for factor in FACTORS), sep="  ")
    print("all                  ", *_pairs(every.mean((0, 3))), sep="  ")
    print(f"IQM: speed-up {float(iqm(torch.stack(speedups))):.2f}, factor {float(iqm(largest)):.2f}")


def _pairs(shares: torch.Tensor) -> list[str]:
    return [f"{train:.2f} / {valid:.2f}" for train, valid in shares.tolist()]


if __name__ == "__main__":
    main()
