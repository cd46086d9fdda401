"""``lightning-lopt assess``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_lopt.command_line import CommandParser
from lightning_lopt.devices import usable_device
from lightning_lopt.progress import Progress
from lightning_lopt.terminal import say

VERDICTS = {"use it": 0, "use it with care": 0, "don't": 3}
"""Exit statuses: for scripts, 3 is a "don't"; 1 and 2 are errors."""


def assess_command(arguments: Sequence[str]) -> int:
    """Print an assessment; returns the exit status."""
    parser = CommandParser(
        "assess",
        "Find out before a long training run whether a rule is to be trusted with your module.",
        notes=[
            "The file you name is imported. Exit status: 3 for the verdict don't, 0 for others, 1 and 2 for errors."
        ],
        example="lightning-lopt assess my_module.py:Model --datamodule my_module.py:Data --total-steps 20000",
    )
    parser.add_argument("model", help="FILE.py:NAME, a LightningModule class or a function that builds one")
    parser.add_argument("--datamodule", help="FILE.py:NAME, likewise; without it, the module's own dataloaders")
    parser.add_argument("--rule", default="base", help="an embedded rule, a folder or hf://owner/name")
    parser.add_argument("--total-steps", type=int, required=True, help="optimizer steps of the planned run")
    parser.add_argument(
        "--budget", help="90s, 5min, 10%% or 400steps of the planned run; without it 5%%, and 20s at least"
    )
    parser.add_argument(
        "--against",
        default="",
        help="names of baselines to run beside the pilots, joined by commas; no part of the verdict",
    )
    parser.add_argument("--device", help="where pilots run, for instance cuda; without it where the module is")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    given = parser.parse_args(arguments)

    from lightning_lopt.assessment.run import assess
    from lightning_lopt.tasks.users_code import users_code
    from lightning_lopt.user_files import load_object

    with Progress("assess") as progress:
        progress.doing(f"importing {given.model}")
        if given.device is not None:
            usable_device(given.device)
        model = load_object(given.model)
        data = None
        if given.datamodule is not None:
            build = load_object(given.datamodule)
            with users_code(f"{given.datamodule}()"):
                data = build()
        found = assess(
            model if given.device is None else _moved(model, given.device),
            data,
            given.rule,
            total_steps=given.total_steps,
            budget=given.budget,
            against=[name for name in given.against.split(",") if name],
            tell=progress.line,
        )
    if given.json is not None:
        found.save(given.json)
    say(str(found))
    return VERDICTS[found.verdict]


def _moved(build: Callable[[], Any], device: str) -> Callable[[], Any]:
    def moved() -> Any:
        return build().to(device)

    moved.__name__ = getattr(build, "__name__", "model")
    return moved
