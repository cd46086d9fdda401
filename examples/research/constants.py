"""Compare settings of `base` that differ in θ alone, on the problems of directions.py: for choosing.

python examples/research/constants.py --data mnist10k.npz cifar10_16x16.npz --change calibration.restraint+0.3 \
    constants.log_step_size+0.26 constants.log_step_size-0.26,calibration.restraint+0.3

A change is an entry of θ and what is added to all of its values; several are joined by commas. All run side by side.
Printed for each problem are the log-ratios of final losses, training / validation, to those of `base` (median of the
seeds; below 0 is better), and at the end their means.
"""

from __future__ import annotations

import argparse
import math
import re
from statistics import fmean

import torch
from directions import problems

from lightning_lopt import UpdateRule, load_rule
from lightning_lopt.evaluation.runs import run_rules

PART = re.compile(r"([a-z_]+\.[a-z_]+)([+-][0-9.]+),?")


def changed(name: str, change: str) -> UpdateRule:
    """The embedded or saved rule with a change."""
    rule = load_rule(name)
    with torch.no_grad():
        for entry, amount in PART.findall(change):
            rule.get_parameter(entry).add_(float(amount))
    return rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="one or two sets of images")
    parser.add_argument("--rule", default="base")
    parser.add_argument("--change", nargs="+", required=True)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    for change in arguments.change:
        if PART.sub("", change):
            parser.error(f"{change!r} is no change; write for instance calibration.restraint+0.3.")
    torch.set_num_threads(1)

    rules = [changed(arguments.rule, change) for change in ("", *arguments.change)]
    ratios: dict[str, list[tuple[float, float]]] = {change: [] for change in arguments.change}
    for problem in problems(arguments.data):
        if not any(part in problem.name for part in arguments.only):
            continue
        start, *runs = run_rules(rules, problem, seeds=arguments.seeds)
        line = [f"{problem.name:24s} {float(start.final_train.median()):.4g} / {float(start.final_valid.median()):.4g}"]
        for change, run in zip(arguments.change, runs, strict=True):
            pair = tuple(
                math.log(float(after.median()) / float(before.median()))
                for after, before in ((run.final_train, start.final_train), (run.final_valid, start.final_valid))
            )
            ratios[change].append((pair[0], pair[1]))
            line.append(f"{pair[0]:+.2f}/{pair[1]:+.2f}")
        print("  ".join(line), flush=True)
    for change, pairs in ratios.items():
        print(f"{change}: {fmean(pair[0] for pair in pairs):+.3f} / {fmean(pair[1] for pair in pairs):+.3f}")


if __name__ == "__main__":
    main()
