"""The command ``lightning-lopt benchmark``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_lopt.checks import check_sizes
from lightning_lopt.command_line import CommandParser, whole_number, writable_folder
from lightning_lopt.devices import usable_device
from lightning_lopt.evaluation.benchmark.device_limits import DeviceLimits, measured_limits
from lightning_lopt.evaluation.benchmark.measure import measure
from lightning_lopt.evaluation.benchmark.optimizers import (
    PEERS,
    REFERENCE,
    Contender,
    rule_contender,
    rule_named,
)
from lightning_lopt.evaluation.benchmark.report import picture, text
from lightning_lopt.evaluation.benchmark.results import ModelResult
from lightning_lopt.evaluation.benchmark.workloads import (
    RECIPES,
    Workload,
    check_recipe,
    named_workload,
    users_workload,
)
from lightning_lopt.evaluation.step_cost import environment_of
from lightning_lopt.extras import png
from lightning_lopt.io.checked_json import write_json
from lightning_lopt.io.whole import write_whole
from lightning_lopt.progress import Progress
from lightning_lopt.rules.base import RULES
from lightning_lopt.terminal import say
from lightning_lopt.user_files import load_object

PLANNED = 10_000  # the horizon of the rules
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def benchmark_command(arguments: Sequence[str]) -> int:
    """Print a table for each model, and write JSON and a picture if ``--out`` is given; return the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    if options.out is not None:
        writable_folder(Path(options.out), "--out")
    results = []
    with Progress("benchmark", total=len(options.models), unit="models") as progress:
        progress.doing(f"measuring the limits of {options.device}")
        device = usable_device(options.device)
        contenders = _contenders(options)
        _check(options)
        limits = measured_limits(device)
        rates = ", ".join(f"{1e-9 * rate:.4g} GFLOP/s in {dtype} products" for dtype, rate in limits.products.items())
        progress.clear()
        say(f"{options.device}, threads {options.threads}: {rates}, {1e-9 * limits.bandwidth:.3g} GB/s of memory\n")
        for name in options.models:
            progress.doing(name)
            workload = _workload(name, options, device)
            autocast = TYPES[options.autocast] if options.autocast else None
            result = measure(workload, contenders, repeats=options.repeats, autocast=autocast, tell=progress.doing)
            results.append(result)
            del workload  # two workloads may not fit into memory
            progress.clear()
            say(text(result, limits) + "\n")
            progress.advance()
            if options.out is not None:  # files are written after each model, so that a stopped run leaves results
                _write(Path(options.out), results, limits, ["benchmark", *arguments], device)
    if options.out is not None:
        say(f"written: {options.out}/benchmark.json, {options.out}/benchmark.png")
    return 0


def _write(
    folder: Path, results: Sequence[ModelResult], limits: DeviceLimits, arguments: Sequence[str], device: torch.device
) -> None:
    content: dict[str, Any] = {
        "command": shlex.join(["lightning-lopt", *arguments]),
        "environment": environment_of(device, torch.get_num_threads()),
        "reference": REFERENCE,
        "products_per_second": limits.products,
        "bytes_per_second": limits.bandwidth,
        "models": [result.to_json(limits) for result in results],
    }
    write_json(folder / "benchmark.json", content)
    write_whole(folder / "benchmark.png", png(picture(results, limits)))


def _check(options: argparse.Namespace) -> None:
    """Check numbers and models before any measurement."""
    check_sizes(repeats=options.repeats)
    for name in options.models:
        if ":" in name:
            load_object(name)
        else:
            check_recipe(name, options.length)


def _contenders(options: argparse.Namespace) -> dict[str, Contender]:
    arguments: dict[str, object] = {}
    if options.state_dtype is not None:
        arguments["state_dtype"] = TYPES[options.state_dtype]
    peers = {name: PEERS[name] for name in dict.fromkeys([REFERENCE, *options.optimizers])}
    rules = {name: rule_contender(rule_named(name), PLANNED, **arguments) for name in options.rules}
    for suffix, compile in [("plain", False)] * options.plain + [("compiled", True)] * options.compile:
        arguments["compile"] = compile
        rules |= {f"{name}_{suffix}": rule_contender(rule_named(name), PLANNED, **arguments) for name in options.rules}
    duplicate = next((name for name in rules if name in peers), None)
    if duplicate is not None:
        raise ValueError(f"a rule and another optimizer are both called {duplicate!r}; leave one of them out.")
    return peers | rules


def _workload(name: str, options: argparse.Namespace, device: torch.device) -> Workload:
    if ":" in name:
        return users_workload(name, options.datamodule, device)
    return named_workload(name, device, dtype=TYPES[options.dtype], batch=options.batch, length=options.length)


def _parser() -> CommandParser:
    parser = CommandParser(
        "benchmark",
        "Measure the cost of a step of an optimizer: its time, its share of a training step, and its memory. The time "
        "is compared with AdamW's, and with the least time for its operations and bytes on this device.",
        notes=["models:\n" + "\n".join(f"  {name:17s} {recipe.about}" for name, recipe in RECIPES.items())],
        example="lightning-lopt benchmark mlp cnn --optimizers adamw_fused",
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", default=["char_transformer"], help="a name from below, or FILE.py:NAME"
    )
    parser.add_argument("--datamodule", help="FILE.py:NAME of a data module; default: the dataloaders of the module")
    parser.add_argument(
        "--rules",
        nargs="*",
        default=["base"],
        metavar="RULE",
        help=f"embedded rules, folders or hf:// addresses; or, with random weights, {', '.join(sorted(RULES))}",
    )
    parser.add_argument(
        "--optimizers",
        nargs="*",
        choices=tuple(PEERS),
        default=list(PEERS),
        help="optimizers in addition to AdamW with foreach; default: all",
    )
    parser.add_argument("--device", default="cpu", help="device of all runs")
    parser.add_argument(
        "--threads", type=whole_number, default=1, help="PyTorch's threads; 1 thread on a CPU: processor time counts"
    )
    parser.add_argument(
        "--repeats", type=int, default=40, help="timed steps, after 40 untimed steps; 40 is a multiple of 4, 5, 8, 10"
    )
    parser.add_argument("--batch", type=whole_number, help="examples in a mini-batch of a named model")
    parser.add_argument("--length", type=whole_number, help="tokens of each text of a named text model")
    parser.add_argument("--dtype", choices=tuple(TYPES), default="float32", help="type of a named model's parameters")
    parser.add_argument("--autocast", choices=("bfloat16",), help="type of forward and backward, as in bf16-mixed")
    parser.add_argument("--tf32", action="store_true", help="compute products of float32 in TF32, on a GPU")
    parser.add_argument("--state-dtype", choices=tuple(TYPES), help="type of the state of learned rules")
    parser.add_argument("--compile", action="store_true", help="also time learned rules with compiled steps")
    parser.add_argument("--plain", action="store_true", help="also time learned rules without compiling and tracing")
    parser.add_argument("--out", metavar="FOLDER", help="folder for benchmark.json and benchmark.png")
    return parser
