"""Measure how much changed constants improve a run on one model, and whether short pilots predict the improvement.

python examples/research/headroom.py siren scaled deep mlp --steps 1500 --seeds 2

Each variant changes one constant of `base`. All variants make a whole run in parallel. They also make pilots, as in
OnlineMetaTraining, from states of a run with `base`. The script prints log-ratios of losses to the losses of `base`:
for the whole run of each seed, and as means over pilots that begin at some steps, with the share of pilots in which the
variant was lower.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

from lightning_lopt import load_rule
from lightning_lopt.meta.pilot import RunSnapshot, pilot_losses
from lightning_lopt.rules.base import StepContext, UpdateRule
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_task import LightningTask

sys.path.insert(0, str(Path(__file__).parents[1]))
from meta_training import MODELS, Batches, Model

INNER, HELD_OUT = 12, 8


def variants(rule: UpdateRule) -> dict[str, tuple[str, Tensor]]:
    """For each variant, the name of an entry of θ and its changed value."""
    theta = {name: value.detach() for name, value in rule.named_parameters()}
    changes = {}
    for entry, size in {
        "constants.log_step_size": 2,
        "constants.log_rms_floor": 3,
        "constants.log_decay_power": 2,
        "constants.logit_warmup": 3,
        "constants.log_weight_decay": 3,
        "calibration.log_tolerance": 3,
        "calibration.log_shrink": 3,
        "calibration.log_grow": 3,
        "calibration.log_balance": 3,
    }.items():
        for sign, label in ((1, f"x{size}"), (-1, f"/{size}")):
            changes[f"{entry.split('_', 1)[1]} {label}"] = entry, theta[entry] + sign * math.log(size)
    for entry, values in {
        "constants.logit_momentum": (0.8, 0.9, 0.96, 0.98),
        "constants.logit_rotated_moment": (0.8, 0.9, 0.98, 0.99),
        "constants.logit_second_moment": (0.95, 0.999),
    }.items():
        for value in values:
            changes[f"{entry.split('_', 1)[1]} {value}"] = (
                entry,
                torch.full_like(theta[entry], math.log(value / (1 - value))),
            )
    for value in (0.5, 1.0):
        changes[f"momentum_mix {value}"] = (
            "constants.momentum_mix",
            torch.full_like(theta["constants.momentum_mix"], value),
        )
    return changes


def measure(name: str, seed: int, steps: int, places: list[int], repeats: int) -> tuple[Tensor, dict[int, Tensor]]:
    """Log-ratios of the whole run, shape ``(variants,)``, and of pilots by step, ``(repeats, variants)``."""
    torch.manual_seed(seed)
    build, size = MODELS[name]
    net, examples = build()
    count = steps + 64
    data = Batches(examples, size, count, seed)
    task = LightningTask(Model(net), StackedBatches([data[index] for index in range(count)], name))
    rule = load_rule("base")
    changes = list(variants(rule).values())
    entries = {entry: dict(rule.named_parameters())[entry].detach() for entry, _ in changes}
    particles = {
        entry: torch.stack([original, *(value if entry == changed else original for changed, value in changes)])
        for entry, original in entries.items()
    }
    batches = [task.nth(index, None) for index in range(count)]

    def relative(snapshot: RunSnapshot, first: int, inner: int, held_out: int) -> Tensor:
        windows = [[batch] for batch in batches[first : first + inner]]
        losses = pilot_losses(rule, particles, task, snapshot, windows, batches[first + inner :][:held_out])
        return (losses / losses[0]).log()[1:]

    params = task.init(torch.Generator())
    state = rule.init_state(params, task.roles)
    whole = relative(RunSnapshot(params, state, task.roles, 0, steps), 0, steps, 64)
    pilots = {}
    for step in range(max(places) + 1):
        if step in places:
            snapshot = RunSnapshot(params, state, task.roles, step, steps)
            begins = [step + repeat * (INNER + HELD_OUT) for repeat in range(repeats)]
            pilots[step] = torch.stack([relative(snapshot, begin, INNER, HELD_OUT) for begin in begins])
        grads, loss, _ = task.gradient(params, batches[step])
        context = StepContext(torch.tensor(float(step)), torch.tensor(float(steps)), loss, task.roles)
        with torch.no_grad():
            updates, state = rule(params, grads, state, context)
            params = {key: value + updates[key] for key, value in params.items()}
    return whole, pilots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--at", type=int, nargs="+", default=[30, 100, 300, 700], help="steps at which pilots begin")
    parser.add_argument("--repeats", type=int, default=4, help="pilots at each of these steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if max(arguments.at) + arguments.repeats * (INNER + HELD_OUT) > arguments.steps:
        parser.error("the last pilot ends after the run")
    for name in arguments.models:
        measured = [measure(name, s, arguments.steps, arguments.at, arguments.repeats) for s in range(arguments.seeds)]
        print(f"{name:20} whole runs | pilots at " + ", ".join(map(str, arguments.at)))
        for row, label in enumerate(variants(load_rule("base"))):
            cells = []
            for place in arguments.at:
                values = [float(value) for _, pilots in measured for value in pilots[place][:, row]]
                lower = sum(value < 0 for value in values)
                cells.append(f"{statistics.mean(values):+.3f} ({lower}/{len(values)})")
            print(f"{label:20} {' '.join(f'{float(whole[row]):+.2f}' for whole, _ in measured)} | {'  '.join(cells)}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
