"""The command ``lightning-lopt assess``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_lopt.command_line import CommandParser, writable_folder
from lightning_lopt.devices import usable_device
from lightning_lopt.progress import Progress
from lightning_lopt.terminal import say

VERDICTS = {"use it": 0, "use it with care": 0, "don't": 3}
"""Exit status by verdict; the statuses 1 and 2 mean errors."""


def assess_command(arguments: Sequence[str]) -> int:
    """Print an assessment, and return the exit status."""
    parser = CommandParser(
        "assess",
        "Find out before a long training run whether a rule is suited for your module.",
        notes=[
            'The given files are imported. Exit status: 3 for the verdict "don\'t", 0 for other verdicts, 1 and 2 for '
            "errors."
        ],
        example="lightning-lopt assess my_module.py:Model --datamodule my_module.py:Data --total-steps 20000",
    )
    parser.add_argument("model", help="FILE.py:NAME of a LightningModule class, or of a function that builds a module")
    parser.add_argument("--datamodule", help="FILE.py:NAME of a data module; default: the dataloaders of the module")
    parser.add_argument("--rule", default="base", help="an embedded rule, a folder or hf://owner/name")
    parser.add_argument("--total-steps", type=int, required=True, help="optimizer steps of the planned run")
    parser.add_argument(
        "--budget", help="90s, 5min, 10%% or 400steps of the planned run; default: 5%%, and at least 20s"
    )
    parser.add_argument(
        "--against",
        default="",
        help="names of baselines for further pilots, joined by commas; the verdict does not depend on them",
    )
    parser.add_argument("--device", help="device of the pilots, for instance cuda; default: the module's device")
    parser.add_argument("--json", metavar="FILE", help="write verdict, reasons and all measurements to a file")
    options = parser.parse_args(arguments)
    if options.json is not None:
        writable_folder(Path(options.json).parent, "--json")

    from lightning_lopt.assessment.run import assess
    from lightning_lopt.tasks.users_code import users_code
    from lightning_lopt.user_files import load_object

    with Progress("assess") as progress:
        progress.doing(f"importing {options.model}")
        if options.device is not None:
            usable_device(options.device)
        model = load_object(options.model)
        data = None
        if options.datamodule is not None:
            build = load_object(options.datamodule)
            with users_code(f"{options.datamodule}()"):
                data = build()
        assessment = assess(
            model if options.device is None else _on_device(model, options.device),
            data,
            options.rule,
            total_steps=options.total_steps,
            budget=options.budget,
            against=[name for name in options.against.split(",") if name],
            tell=progress.line,
        )
    if options.json is not None:
        assessment.save(options.json)
    say(str(assessment))
    return VERDICTS[assessment.verdict]


def _on_device(build: Callable[[], Any], device: str) -> Callable[[], Any]:
    """A function that builds the module and moves it to the device."""

    def build_on_device() -> Any:
        return build().to(device)

    build_on_device.__name__ = getattr(build, "__name__", "model")
    return build_on_device
