"""``lightning-lopt baselines``: tunes the baselines of whole suites, and stores their measurements in a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_lopt.command_line import CommandError, CommandParser, whole_number, writable_folder
from lightning_lopt.devices import usable_device
from lightning_lopt.evaluation.baselines import BASELINES, FINE_TUNING_BASELINES, Baselines, sweep_of
from lightning_lopt.evaluation.evaluate_command import SUITE_HELP, problems_of, suite_argument
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.progress import Progress
from lightning_lopt.terminal import say
from lightning_lopt.wording import one_line


def main(arguments: Sequence[str]) -> int:
    """Compute the missing entries of ``--out``, one after the other; the command can be stopped and resumed."""
    sweeps = BASELINES | FINE_TUNING_BASELINES
    parser = CommandParser(
        "baselines",
        "Tune hand-designed optimizers on suites of problems; existing entries of the file are not computed again.",
        notes=["optimizers:\n" + "\n".join(f"  {name}: {sweep.description}" for name, sweep in sweeps.items())],
        example="lightning-lopt baselines --suite tiny --optimizer adamw muon --out baselines.json",
    )
    parser.add_argument("--suite", nargs="+", type=suite_argument, metavar="SUITE", default=["small"], help=SUITE_HELP)
    parser.add_argument("--data", nargs="+", default=None, help="digits, npz files or folders of IDX files")
    parser.add_argument(
        "--optimizer",
        nargs="+",
        choices=tuple(sweeps),
        default=[name for name, sweep in BASELINES.items() if sweep.available],
        help="default: all installed optimizers, except the optimizers of fine-tuning",
    )
    parser.add_argument("--seeds", type=whole_number, default=3, help="number of models per optimizer and problem")
    parser.add_argument("--out", required=True, help="JSON file to which entries are added")
    parser.add_argument("--device", default="cpu", help="device of all runs")
    parser.add_argument("--threads", type=whole_number, default=1, help="number of PyTorch's threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    writable_folder(Path(options.out).parent, "--out")

    with Progress(f"baselines of {', '.join(options.suite)}", unit="baselines") as progress:
        progress.doing("reading problems")
        usable_device(options.device)
        problems = [problem for suite in options.suite for problem in problems_of(suite, options.data)]
        jobs = [(problem, name) for problem in problems for name in options.optimizer]
        baselines = Baselines(options.out, options.seeds, shipped=False, device=options.device)
        for problem, name in jobs:
            if baselines.find(problem, name) is None:
                sweep_of(name).require()
        began = time.monotonic()
        for number, (problem, name) in enumerate(jobs, 1):
            progress.to(number - 1, len(jobs), one_line(f"{name} on {problem.name}"))
            is_stored = baselines.find(problem, name) is not None
            baselines(problem, name)
            if baselines.not_kept:
                reason = baselines.not_kept
                raise CommandError(f"baselines were not stored ({reason}); free space or give another --out.")
            progress.clear()
            say(
                f"[{number}/{len(jobs)}] {time.monotonic() - began:.0f} s: {_line(baselines, problem, name, is_stored)}"
            )
            progress.advance()
    return 0


def _line(baselines: Baselines, problem: Problem, name: str, is_stored: bool) -> str:
    """A line of text about a baseline: its losses after the last step, and the chosen learning rate."""
    run = baselines(problem, name)
    line = f"{problem.name}, {name}: {float(run.final_train.median()):.4f} / {float(run.final_valid.median()):.4f}"
    if run.learning_rate is not None:
        rates = sweep_of(name).learning_rates
        at_end = ", the end of the sweep" if run.learning_rate in (rates[0], rates[-1]) else ""
        line += f" at learning rate {run.learning_rate:g}{at_end}"
    return line + (" (stored before)" if is_stored else "")
