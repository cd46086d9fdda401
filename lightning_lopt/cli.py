"""The command ``lightning-lopt``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence

USAGE = """usage: lightning-lopt COMMAND ...

  meta-train   meta-train a rule; --config FILE, --print_config, --ckpt_path FILE to resume, --help for all options;
               a config is code (it names what is built): only run those you trust
  convert SRC DST  a rule saved by others (flax, PyLO; file, folder or hf://owner/name@revision) in our format; --help
  info RULE    what an embedded rule or a folder holds: its card, its size, what it costs and reads
  evaluate RULE  how it does beside tuned baselines: --suite NAME (or FILE.py:NAME, your own) --against NAMES --out DIR;
               --help for all options
  compare A B ... the same for several rules on one report; RULE@start is a rule before meta-training
  baselines    tune hand-designed optimizers on suites of problems, --suite NAMES --out FILE; --help for all options
  assess FILE.py:MODEL --total-steps N   is a rule to be trusted with your module? --help for all options
  benchmark MODEL ...  what a step costs in time and memory, beside AdamW's; --help for models and options
"""


CONFIGS_ARE_CODE = (
    "A config is code: the classes and functions that its class_path entries name are imported and called with the "
    "arguments beside them, as in every LightningCLI. Only run configs that you trust. (Folders of rules are data: "
    "nothing in them is run.)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help") or given[0] not in COMMANDS:
        unknown = bool(given) and given[0] not in ("-h", "--help")
        print(f"lightning-lopt: there is no command {given[0]!r}.\n\n{USAGE}" if unknown else USAGE)
        return 2 if unknown or not given else 0
    return COMMANDS[given[0]](given[1:])


def meta_train(arguments: Sequence[str]) -> int:
    """Fit a :class:`MetaTrainer` as LightningCLI does: everything by flags or in a YAML file.

    A config is code: whatever class or function its ``class_path`` entries name is imported and called.

    Raises:
        ImportError: if jsonargparse is not installed.
    """
    try:
        import jsonargparse  # noqa: F401
    except ImportError as error:
        raise ImportError('the command needs jsonargparse; run pip install "lightning-lopt[cli]".') from error
    from lightning.pytorch.cli import LightningCLI

    from lightning_lopt.meta import MetaTrainer, TaskDataModule

    # Only args can be given here: DDP starts further processes with sys.argv as it is.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    LightningCLI(
        MetaTrainer,
        TaskDataModule,
        args=["fit", *arguments],
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        parser_kwargs={"fit": {"epilog": CONFIGS_ARE_CODE}},
    )
    return 0


def info(arguments: Sequence[str]) -> int:
    """Print a rule's card and numbers."""
    from lightning_lopt.evaluation.benchmark import rule_memory
    from lightning_lopt.io import RuleFileError, load_card, load_rule
    from lightning_lopt.rules.contract.footprint import report
    from lightning_lopt.terminal import say

    if len(arguments) != 1:
        print("usage: lightning-lopt info RULE")
        return 2
    try:
        rule, card = load_rule(arguments[0]), load_card(arguments[0])
    except RuleFileError as error:
        say(f"lightning-lopt: {error}")
        return 1
    say(card.rstrip())
    say(f"\nrule: {rule.rule_name}, {type(rule).__name__}({', '.join(f'{k}={v!r}' for k, v in rule.config.items())})")
    say(report(rule))
    say(rule_memory.report(rule))
    return 0


def convert(arguments: Sequence[str]) -> int:
    """Import a rule of others; see :mod:`lightning_lopt.io.importers.convert`."""
    from lightning_lopt.io.importers.convert import convert_main

    return convert_main(arguments)


def baselines(arguments: Sequence[str]) -> int:
    """Tune baselines; see :mod:`lightning_lopt.evaluation.baselines_command`."""
    from lightning_lopt.evaluation.baselines_command import main as tune

    return tune(arguments)


def evaluate(arguments: Sequence[str]) -> int:
    """Measure a rule; see :mod:`lightning_lopt.evaluation.evaluate_command`."""
    from lightning_lopt.evaluation.evaluate_command import evaluate_main

    return evaluate_main(arguments)


def compare(arguments: Sequence[str]) -> int:
    """Measure several rules; see :mod:`lightning_lopt.evaluation.evaluate_command`."""
    from lightning_lopt.evaluation.evaluate_command import compare_main

    return compare_main(arguments)


def assess(arguments: Sequence[str]) -> int:
    """Is a rule to be trusted with a module; see :mod:`lightning_lopt.assessment`."""
    from lightning_lopt.assessment.command import assess_command

    return assess_command(arguments)


def benchmark(arguments: Sequence[str]) -> int:
    """What a step costs; see :mod:`lightning_lopt.evaluation.benchmark.command`."""
    from lightning_lopt.evaluation.benchmark.command import benchmark_command

    return benchmark_command(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "meta-train": meta_train,
    "convert": convert,
    "info": info,
    "evaluate": evaluate,
    "compare": compare,
    "baselines": baselines,
    "assess": assess,
    "benchmark": benchmark,
}
