"""Compare `base` with AdamW at four learning rates on the suite `real`, in losses and seconds.

python examples/research/real_problems.py --out real.jsonl

The tuned baselines of the package have eight rates and three seeds, which would take a day on this suite. This script
uses one seed, the rates 3e-4 to 1e-2 and a cosine schedule. Each run is a line of JSON in the file; a second call makes
only the missing runs. At the end, the script prints a table: the final training / validation losses of `base`, of AdamW
at its best rate for each split and of AdamW at 1e-3; the speed-up of `base` to the final loss of AdamW, in steps and in
seconds; and milliseconds of a gradient and of steps, on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_lopt import load_rule
from lightning_lopt.evaluation.baselines import BASELINES
from lightning_lopt.evaluation.measurement import Measurement, Problem, run_rules
from lightning_lopt.evaluation.metrics import final_loss, step_speedup
from lightning_lopt.evaluation.step_cost import step_costs
from lightning_lopt.evaluation.suites import make_suite

RATES = (1e-3, 3e-3, 3e-4, 1e-2)
LARGE = 500_000
"""Problems with at least this number of parameters come last, with one run at a time; smaller problems have all
learning rates in parallel."""
COSTS = "costs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("real.jsonl"), help="file to add to")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--table", action="store_true", help="print the table of the file without new runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = [problem for problem in make_suite("real") if any(part in problem.name for part in arguments.only)]
    if not arguments.table:
        for problem, rates in jobs(problems):
            run_missing(problem, rates, arguments.out)
    print_table(problems, lines_of(arguments.out))


def jobs(problems: list[Problem]) -> Iterator[tuple[Problem, tuple[float | None, ...]]]:
    """Problems, and learning rates of AdamW that run in parallel; ``None`` stands for `base`."""
    large = [problem for problem in problems if parameters(problem) >= LARGE]
    for problem in problems:
        if problem not in large:
            yield from ((problem, RATES), (problem, (None,)))
    for rate in (None, *RATES):
        yield from ((problem, (rate,)) for problem in large)


def parameters(problem: Problem) -> int:
    """The number of parameters; this needs no pretraining."""
    layout = getattr(problem.task, "task", problem.task).layout
    return sum(math.prod(entry.shape) for entry in layout.entries.values())


def run_missing(problem: Problem, rates: tuple[float | None, ...], path: Path) -> None:
    """Make the missing runs of a problem, and add them to the file."""
    stored = {(line["problem"], line["optimizer"], line["lr"]) for line in lines_of(path)}
    if (problem.name, COSTS, None) not in stored:
        gradient, steps = step_costs(problem, {"base": load_rule("base")}, ["adamw"])
        add_line(path, {"problem": problem.name, "optimizer": COSTS, "lr": None, "gradient": gradient, "steps": steps})
    name = "base" if None in rates else "adamw"
    missing = [rate for rate in rates if (problem.name, name, rate) not in stored]
    if not missing:
        return
    begin = time.process_time()
    rules = [load_rule("base") if rate is None else BASELINES["adamw"].make(rate) for rate in missing]
    runs = run_rules(rules, problem, seeds=1)
    seconds = (time.process_time() - begin) / len(runs)
    for rate, run in zip(missing, runs, strict=True):
        line = {"problem": problem.name, "optimizer": name, "lr": rate, "seconds": seconds}
        add_line(path, line | {"measurement": run.to_json()})


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of the file, or no lines if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_line(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


COLUMNS = (
    *("problem", "base", "AdamW", "its rates", "AdamW, 1e-3", "speed-up", "speed-up in seconds"),
    *("forward and backward, ms", "AdamW, ms", "base, ms"),
)


def print_table(problems: list[Problem], lines: list[dict[str, Any]]) -> None:
    """Print one row for each problem with lines of `base`, of AdamW and of costs."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for problem in problems:
        runs = {
            line["lr"]: Measurement.from_json(line["measurement"])
            for line in lines
            if line["problem"] == problem.name and line["optimizer"] != COSTS
        }
        costs = [line for line in lines if line["problem"] == problem.name and line["optimizer"] == COSTS]
        if not (None in runs and len(runs) > 1 and costs):
            continue
        ours = runs.pop(None)
        best = {
            split: min(runs, key=lambda rate, split=split: float(final_loss(runs[rate], split).nan_to_num(torch.inf)))
            for split in ("train", "valid")
        }
        cells = [problem.name, " / ".join(f"{float(final_loss(ours, split)):.3f}" for split in best)]
        cells.append(" / ".join(f"{float(final_loss(runs[rate], split)):.3f}" for split, rate in best.items()))
        cells.append(" / ".join(f"{rate:g}" for rate in best.values()) + f" of {len(runs)}")
        untuned = runs.get(1e-3)
        cells.append(
            "" if untuned is None else " / ".join(f"{float(final_loss(untuned, split)):.3f}" for split in best)
        )
        gradient, adamw, base = costs[0]["gradient"], costs[0]["steps"]["adamw"], costs[0]["steps"]["base"]
        speed_up = float(step_speedup(ours, runs[best["train"]], problem.task.loss_scale))
        cells += [f"{speed_up:.2f}", f"{speed_up * (gradient + adamw) / (gradient + base):.2f}"]
        print("| " + " | ".join([*cells, *(f"{1000 * cost:.1f}" for cost in (gradient, adamw, base))]) + " |")


if __name__ == "__main__":
    main()
