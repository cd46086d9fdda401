"""``lightning-lopt baselines``: tunes the baselines of whole suites and stores them in a file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from lightning_lopt.evaluation.baselines import BASELINES, FINE_TUNING_BASELINES, Baselines, sweep_of
from lightning_lopt.evaluation.evaluate_command import SUITE_HELP, problems_of, suite_argument
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.terminal import say


def main(arguments: Sequence[str]) -> int:
    """Compute the entries that ``--out`` does not have yet, one after the other; after a stop, it can be resumed."""
    sweeps = BASELINES | FINE_TUNING_BASELINES
    parser = argparse.ArgumentParser(
        "lightning-lopt baselines",
        description="Tune hand-designed optimizers on suites of problems; what the file holds already is left alone.",
        epilog="; ".join(f"{name}: {sweep.description}" for name, sweep in sweeps.items()),
    )
    parser.add_argument("--suite", nargs="+", type=suite_argument, metavar="SUITE", default=["small"], help=SUITE_HELP)
    parser.add_argument("--data", nargs="+", default=None, help="digits, npz files or folders of IDX files")
    parser.add_argument(
        "--optimizer",
        nargs="+",
        choices=tuple(sweeps),
        default=[name for name, sweep in BASELINES.items() if sweep.available],
        help="default: all whose packages are installed, but not those of fine-tuning",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", required=True, help="JSON file to add to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    try:
        problems = [problem for suite in options.suite for problem in problems_of(suite, options.data)]
        jobs = [(problem, name) for problem in problems for name in options.optimizer]
        baselines = Baselines(options.out, options.seeds, shipped=False, device=options.device)
        for problem, name in jobs:
            if baselines.find(problem, name) is None:
                sweep_of(name).require()
    except (ValueError, ImportError) as error:
        say(f"lightning-lopt: {error}")
        return 1
    begin = time.monotonic()
    for number, (problem, name) in enumerate(jobs, 1):
        was_known = baselines.find(problem, name) is not None
        baselines(problem, name)
        if baselines.not_kept:
            say(f"lightning-lopt: baselines were not kept ({baselines.not_kept}); free space or give another --out.")
            return 1
        say(f"[{number}/{len(jobs)}] {time.monotonic() - begin:.0f} s: {_line(baselines, problem, name, was_known)}")
    return 0


def _line(baselines: Baselines, problem: Problem, name: str, was_known: bool) -> str:
    """A baseline in one line: losses after the last step, and the chosen learning rate."""
    run = baselines(problem, name)
    line = f"{problem.name}, {name}: {float(run.final_train.median()):.4f} / {float(run.final_valid.median()):.4f}"
    if run.learning_rate is not None:
        rates = sweep_of(name).learning_rates
        at_end = ", the end of the sweep" if run.learning_rate in (rates[0], rates[-1]) else ""
        line += f" at learning rate {run.learning_rate:g}{at_end}"
    return line + (" (known)" if was_known else "")
