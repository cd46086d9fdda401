"""Compare rules on tasks drawn from the mixture "broad" and on given images, for choosing and not for reports.

python examples/research/drawn_tasks.py base my_rule --data cifar.npz mnist.npz --count 40
python examples/research/drawn_tasks.py base --calibrate 0.2 0.3 0.03 --calibrate 0.3 0.1 0.03   # base, calibrated

For each task, the script prints the log-ratios of final losses, training / validation, to the losses of the first rule
(median of the seeds; below 0 is better), and the means of these log-ratios so far.
"""

from __future__ import annotations

import argparse
import math
from statistics import fmean

import torch

from lightning_lopt import ResidualRule, UpdateRule, load_rule
from lightning_lopt.evaluation.measurement import Problem, run_rules
from lightning_lopt.evaluation.results import ProblemResult
from lightning_lopt.tasks.mixtures import make_families
from lightning_lopt.tasks.task_mixture import TaskMixture


def calibrated(rule: UpdateRule, shrink: float, grow: float, tolerance: float) -> ResidualRule:
    """A rule with the same constants and a calibration."""
    calibrated_rule = ResidualRule(**{**rule.config, "calibrated": True})
    calibrated_rule.load_state_dict(rule.state_dict(), strict=False)
    assert calibrated_rule.calibration is not None
    with torch.no_grad():
        for name, value in (("log_shrink", shrink), ("log_grow", grow), ("log_tolerance", tolerance)):
            calibrated_rule.calibration.get_parameter(name).fill_(math.log(value))
    return calibrated_rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rules", nargs="+", help="embedded rules or folders; the others are compared with the first rule"
    )
    parser.add_argument(
        "--calibrate", nargs=3, type=float, action="append", default=[], metavar=("SHRINK", "GROW", "TOL")
    )
    parser.add_argument("--families", default="broad")
    parser.add_argument("--data", nargs="+", default=["digits"])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--first", type=int, default=2000, help="seed of the first task")
    parser.add_argument("--horizons", type=int, nargs=2, default=(300, 3000), help="range of the horizons")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rules: dict[str, UpdateRule] = {name: load_rule(name) for name in arguments.rules}
    first = arguments.rules[0]
    for shrink, grow, tolerance in arguments.calibrate:
        rules[f"calibrated {shrink:g} {grow:g} {tolerance:g}"] = calibrated(rules[first], shrink, grow, tolerance)
    mixture = TaskMixture(make_families(arguments.families, arguments.data))
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in rules if name != first}
    low, high = arguments.horizons
    for index in range(arguments.count):
        task = mixture.sample(arguments.first + index)
        horizon = round(low * (high / low) ** (index * 0.618 % 1))  # the golden ratio spreads horizons evenly
        size = sum(value.numel() for value in task.init(torch.Generator().manual_seed(0)).values())
        problem = Problem(task.name, task, min(horizon, max(low, 30_000_000 // size)))
        measured = {name: run_rules([rule], problem, seeds=arguments.seeds)[0] for name, rule in rules.items()}
        result = ProblemResult(task.name, problem.horizon, task.loss_scale, measured)
        for name, values in ratios.items():
            values.append((result.log_ratio(name, first, "train"), result.log_ratio(name, first, "valid")))
        cells = ", ".join(f"{name} {values[-1][0]:+.3f} / {values[-1][1]:+.3f}" for name, values in ratios.items())
        print(f"{task.name}, {problem.horizon} steps, {size} parameters: {cells}", flush=True)
        means = (
            f"{name} {fmean(train for train, _ in values):+.3f} / {fmean(valid for _, valid in values):+.3f}"
            for name, values in ratios.items()
        )
        print(f"  mean of {index + 1}: {', '.join(means)}", flush=True)


if __name__ == "__main__":
    main()
