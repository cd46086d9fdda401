"""``lightning-lopt evaluate`` and ``compare``: measure rules and tuned baselines on a suite, and write a report."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

import torch

from lightning_lopt.command_line import CommandError, CommandParser, whole_number, writable_folder
from lightning_lopt.devices import usable_device
from lightning_lopt.errors import cause
from lightning_lopt.evaluation.baselines import BASELINES, FINE_TUNING_BASELINES, Baselines
from lightning_lopt.evaluation.evaluator import evaluate
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.report import numbers, write_report
from lightning_lopt.evaluation.report.numbers import ALL
from lightning_lopt.evaluation.report.page import PAGE, RESULTS
from lightning_lopt.evaluation.report.tables_and_pictures import finals, log_ratios, overall
from lightning_lopt.evaluation.report.verdict import summary, untuned_table
from lightning_lopt.evaluation.results import Results, RuleRecord
from lightning_lopt.evaluation.suites import SUITES, make_suite, named_problems
from lightning_lopt.io import load_meta_training, load_rule
from lightning_lopt.progress import Progress
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.terminal import say
from lightning_lopt.wording import one_line

START = "@start"
"""Suffix of a rule's name: it means the same class and config with the θ at the start of meta-training."""
SUITE_HELP = (
    f"one of {', '.join(SUITES)}; or FILE.py:NAME of a list of lightning_lopt.evaluation.Problem in your file, or of a "
    "function without arguments that returns such a list (the file is run)"
)
RUN_AGAIN = "measurements so far are stored: free space or memory and run the command again, or give another --out."


def evaluate_main(arguments: Sequence[str]) -> int:
    """Run the command ``evaluate``, which measures one rule; return the exit status."""
    return _main("evaluate", arguments)


def compare_main(arguments: Sequence[str]) -> int:
    """Run the command ``compare``, which measures several rules; return the exit status."""
    return _main("compare", arguments)


def _main(command: str, arguments: Sequence[str]) -> int:
    options = _parser(command).parse_args(arguments)
    torch.set_num_threads(options.threads)
    rule_names, suite = ", ".join(options.rules), options.suite
    folder = Path(options.out or _folder_name(options.rules, suite))
    baseline_file = Path(options.baselines or folder / "baselines.json")
    if options.out is not None:
        writable_folder(folder, "--out")
    if options.baselines is not None:
        writable_folder(baseline_file.parent, "--baselines")
    try:
        with Progress(f"{rule_names} on {suite}", unit="measurements") as progress:
            progress.doing("reading rules and problems")
            usable_device(options.device)
            rules, records = _load(options.rules)
            against = [name for name in options.against.split(",") if name]
            problems = _selected(problems_of(suite, options.data), options.only)
            if options.out is None:
                writable_folder(folder, "--out")  # the default folder is made only once there is something to measure
            baselines = Baselines(baseline_file, options.seeds, device=options.device)
            results = evaluate(
                rules,
                problems,
                against,
                baselines=baselines,
                folder=folder / "measured",
                workers=options.workers,
                records=records,
                suite=suite,
                command=shlex.join(["lightning-lopt", command, *arguments]),
                progress=lambda finished, total, activity: progress.to(finished, total, one_line(activity)),
            )
            progress.doing("writing the report")
            page = write_report(results, folder)
    except OSError as error:
        raise CommandError(f"a file could not be read or written ({cause(error)}); {RUN_AGAIN}") from error
    except BrokenExecutor as error:
        raise CommandError(f"a process that measures was killed, or was out of memory; {RUN_AGAIN}") from error
    _print(results)
    if options.wandb is not None:
        _log(results, folder, options.wandb)
    say(f"\nreport: {page}")
    return 0


def _parser(command: str) -> CommandParser:
    is_compare = command == "compare"
    sweeps = BASELINES | FINE_TUNING_BASELINES
    rules = "base base@start" if is_compare else "base"
    parser = CommandParser(
        command,
        f"Compare {'several rules' if is_compare else 'a rule'} with tuned baselines on a suite of problems, and write "
        "a report. Rules are not changed. If the command is stopped, run it again to continue.",
        notes=["baselines:\n" + "\n".join(f"  {name}: {sweep.description}" for name, sweep in sweeps.items())],
        example=f"lightning-lopt {command} {rules} --suite tiny --against adamw,muon --out report",
    )
    parser.add_argument(
        "rules",
        nargs="+" if is_compare else 1,
        metavar="RULE",
        help=f"embedded rule, folder or hf:// address; RULE{START} is the same rule before meta-training",
    )
    parser.add_argument("--suite", type=suite_argument, metavar="SUITE", default="small", help=SUITE_HELP)
    parser.add_argument("--only", nargs="+", default=None, metavar="PROBLEM", help="names of problems; default: all")
    parser.add_argument("--against", default="adamw", help="names of baselines, joined by commas")
    parser.add_argument("--seeds", type=whole_number, default=3, help="number of models per optimizer and problem")
    parser.add_argument("--out", default=None, help="folder of the report; default: a name of the rules and the suite")
    parser.add_argument("--workers", type=whole_number, default=1, help="number of processes with one thread each")
    parser.add_argument("--threads", type=whole_number, default=1, help="number of threads of this process")
    parser.add_argument("--device", default="cpu", help="device of all runs")
    parser.add_argument("--data", nargs="+", default=None, help="digits, npz files or folders of IDX files")
    parser.add_argument("--baselines", default=None, help="JSON file of tuned baselines; default: a file in --out")
    parser.add_argument("--wandb", default=None, metavar="PROJECT", help="also log tables, pictures and files to W&B")
    return parser


def suite_argument(text: str) -> str:
    """Check the name of a suite; an address ``FILE.py:NAME`` of a user's suite is checked when it is read.

    Raises:
        argparse.ArgumentTypeError: if the text is neither a name of a suite nor an address.
    """
    if ":" not in text and text not in SUITES:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {', '.join(map(repr, SUITES))}, or FILE.py:NAME for your own)"
        )
    return text


def problems_of(suite: str, data: Sequence[str] | None) -> list[Problem]:
    """The problems of a suite from the command line.

    Raises:
        ValueError: if the problems cannot be made.
        ImportError: if the data come with a package that is not installed.
    """
    if data is None:
        return named_problems(suite)
    if ":" in suite:
        raise ValueError(f"--data applies only to suites of the package; leave it out for {suite}.")
    return make_suite(suite, data)


def _selected(problems: list[Problem], names: Sequence[str] | None) -> list[Problem]:
    """The problems with these names, in the order of the suite; ``None`` selects all problems."""
    names_in_suite = [problem.name for problem in problems]
    for name in names or ():
        if name not in names_in_suite:
            available = ", ".join(map(repr, names_in_suite))
            raise ValueError(f"there is no problem {name!r} in the suite; use some of {available}.")
    return [problem for problem in problems if names is None or problem.name in names]


def _load(names: Sequence[str]) -> tuple[dict[str, UpdateRule], dict[str, RuleRecord]]:
    rules: dict[str, UpdateRule] = {}
    records: dict[str, RuleRecord] = {}
    for name in names:
        if name in rules:
            raise ValueError(f"the rule {name!r} is named twice; name each rule once.")
        source = name.removesuffix(START)
        rule = load_rule(source)
        if source != name:
            rule = type(rule)(**rule.config)
        rules[name] = rule
        records[name] = RuleRecord.of(rule, load_meta_training(source), name)
    return rules, records


def _folder_name(rules: Sequence[str], suite: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join((*rules, suite))).strip("-") + "-report"


def _print(results: Results) -> None:
    report_numbers = numbers(results)
    losses = finals(results.problems, [*results.rules, *results.against])
    say(f"\nLosses after the last step, training / validation, medians over seeds:\n\n{losses.markdown()}\n")
    metrics = overall(report_numbers, "shell", ALL)
    say(f"Metrics with 95 % intervals; the report has their definitions:\n\n{metrics.markdown()}\n")
    ratios = log_ratios(results)
    say(f"Logarithms of the ratios of final losses; below 0 the loss of the rule is lower:\n\n{ratios.markdown()}\n")
    if (table := untuned_table(results)).rows:
        say(f"Untuned against untuned:\n\n{table.markdown()}\n")
    for paragraph in summary(results, report_numbers):
        say(paragraph)


def _log(results: Results, folder: Path, project: str) -> None:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    from lightning_lopt.evaluation.report import log_media

    # the path is absolute, because the process that writes may have another working directory
    logger = WandbLogger(project=project, save_dir=folder.resolve(), job_type="evaluation")
    logger.log_hyperparams({"command": results.command, **results.environment})
    logger.log_metrics(
        {
            f"evaluation/{number.rule}/{number.against}/{number.metric}": number.value
            for number in numbers(results)
            if number.group == ALL
        }
    )
    log_media(
        logger,
        results,
        "evaluation",
        artifacts={"results": folder / RESULTS, "report": folder / PAGE},
    )
    wandb.finish()
