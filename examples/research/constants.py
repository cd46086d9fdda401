"""Compare settings of `base` that differ only in θ, on the problems of directions.py, in order to choose settings.

python examples/research/constants.py --data mnist10k.npz cifar10_16x16.npz --change calibration.log_grow-20 \
    constants.log_step_size+0.26 constants.log_step_size-0.26,calibration.log_tolerance+0.3

A change is an entry of θ (or of `ideas.py`) and a number that is added to all values of the entry. Commas join several
changes. All changed rules run in parallel. `--config longest_side=64,turn_every=8` adds a rule with other settings and
the same θ, which runs separately. With `--long`, there are five runs of 10,000 steps (or of the given number) instead.
For each problem, the script prints the log-ratios of final losses, training / validation, to the losses of `base`
(median of the seeds; below 0 is better). At the end, it prints their means, and the IQM of the speed-up in steps over
tuned AdamW.
"""

from __future__ import annotations

import argparse
import json
import re

import torch
from directions import long_problems, pair, problems, speed_up
from ideas import WithIdeas

from lightning_lopt import ResidualRule, UpdateRule, load_rule
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.evaluation.results import ProblemResult

PART = re.compile(r"((?:[a-z_]+\.)?[a-z_]+)([+-][0-9.]+),?")


def changed(name: str, change: str, changes: str = "") -> UpdateRule:
    """The embedded or saved rule with a change; with the constants of all ideas if ``changes`` names an idea."""
    rule = load_rule(name)
    idea_names = ("ideas.", "decay_taper", "momentum_horizon")
    if isinstance(rule, ResidualRule) and any(idea in changes for idea in idea_names):
        rule = WithIdeas(rule, "ideas.orthogonal_share" in changes, "ideas.entry_power" in changes)
    with torch.no_grad():
        for entry, amount in PART.findall(change):
            rule.get_parameter(entry).add_(float(amount))
    return rule


def configured(name: str, settings: str) -> UpdateRule:
    """The embedded or saved rule with other settings, written as ``key=value,key=value`` with JSON values."""
    rule = load_rule(name)
    changes = {key: json.loads(value.lower()) for key, value in (setting.split("=") for setting in settings.split(","))}
    configured_rule = type(rule)(**{**rule.config, **changes})
    configured_rule.load_state_dict(rule.state_dict())
    return configured_rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="one or two sets of images")
    parser.add_argument("--rule", default="base")
    parser.add_argument("--change", nargs="+", default=[])
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE,...", help="rules with other settings")
    parser.add_argument(
        "--long", type=int, nargs="?", const=10_000, metavar="STEPS", help="make long runs of STEPS steps instead"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--baselines", default=None, help="file that stores the runs of tuned AdamW")
    arguments = parser.parse_args()
    for change in arguments.change:
        if PART.sub("", change):
            parser.error(f"{change!r} is no change; write for instance calibration.log_tolerance+0.3.")
    torch.set_num_threads(1)

    names = ["", *arguments.change]
    rules = [changed(arguments.rule, change, " ".join(names)) for change in names]
    compared = [*names, *arguments.config]
    configured_rules = {settings: configured(arguments.rule, settings) for settings in arguments.config}
    tuned = Baselines(arguments.baselines, seeds=arguments.seeds, shipped=False)
    results = []
    for problem in long_problems(arguments.data, arguments.long) if arguments.long else problems(arguments.data):
        if not any(part in problem.name for part in arguments.only):
            continue
        runs = dict(zip(names, run_rules(rules, problem, seeds=arguments.seeds), strict=True))
        for settings, rule in configured_rules.items():
            (runs[settings],) = run_rules([rule], problem, seeds=arguments.seeds)
        runs["adamw"] = tuned(problem, "adamw")
        results.append(ProblemResult(problem.name, problem.horizon, problem.task.loss_scale, runs))
        base = f"{float(runs[''].final_train.median()):.4g} / {float(runs[''].final_valid.median()):.4g}"
        print(f"{problem.name:24s} {base}", *(pair(results[-1:], n, "") for n in compared[1:]), sep="  ", flush=True)
    for change in compared:
        speed = speed_up(results, change, "adamw")
        print(f"{change or arguments.rule}: {pair(results, change, '')}, speed-up {speed:.2f}")


if __name__ == "__main__":
    main()
