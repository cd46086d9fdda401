"""The command ``lightning-lopt``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_lopt.__about__ import __version__
from lightning_lopt.command_line import BAD_INPUT, Command, CommandParser, run
from lightning_lopt.terminal import complain, say

USAGE = """usage: lightning-lopt COMMAND ...

  meta-train   meta-train a rule; --config FILE, --print_config, --ckpt_path FILE to resume;
               a config is code (it names what is built): only run those you trust
  convert SRC DST  a rule saved by others (flax, PyLO; file, folder or hf://owner/name@revision) in our format
  push FOLDER OWNER/NAME  a saved rule to the Hugging Face Hub
  info RULE    what an embedded rule or a folder holds: key numbers, what it costs and reads, its card
  evaluate RULE  how it does beside tuned baselines: --suite NAME (or FILE.py:NAME, your own) --against NAMES --out DIR
  compare A B ... the same for several rules on one report; RULE@start is a rule before meta-training
  baselines    tune hand-designed optimizers on suites of problems, --suite NAMES --out FILE
  assess FILE.py:MODEL --total-steps N   is a rule to be trusted with your module?
  benchmark MODEL ...  what a step costs in time and memory, beside AdamW's

lightning-lopt COMMAND --help   all options of a command, and an example
lightning-lopt --version
lightning-lopt --traceback COMMAND ...   show where an error comes from

Exit status: 0; 1 where the machine lacks something (a package, space on the disk); 2 for bad input; of assess 3 for
the verdict "don't".
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    traceback = given[:1] == ["--traceback"]
    given = given[1:] if traceback else given
    if given[:1] == ["--version"]:
        say(f"lightning-lopt {__version__}")
        return 0
    if given[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not given:
        print(USAGE, file=sys.stderr)
        return BAD_INPUT
    if given[0] not in COMMANDS:
        complain(
            f"lightning-lopt: there is no command {given[0]!r}; use one of {', '.join(COMMANDS)}, or 'lightning-lopt "
            "--help'."
        )
        return BAD_INPUT
    if given[0] in LONG and not {"-h", "--help"} & {*given}:
        complain(f"lightning-lopt {given[0]}: loading PyTorch and Lightning")  # which takes seconds
    return run(COMMANDS[given[0]], given[1:], traceback=traceback)


def meta_train(arguments: Sequence[str]) -> int:
    """Meta-train a rule; see :mod:`lightning_lopt.meta.command`."""
    from lightning_lopt.meta.command import meta_train_main

    return meta_train_main(arguments)


def info(arguments: Sequence[str]) -> int:
    """Print what is known of a rule; see :mod:`lightning_lopt.info`."""
    parser = CommandParser(
        "info",
        "Show what is known of a rule: key numbers first, then what it costs and reads, then its card.",
        example="lightning-lopt info base",
    )
    parser.add_argument("rule", metavar="RULE", help="embedded rule, folder or hf:// address")
    source = parser.parse_args(arguments).rule

    from lightning_lopt.info import print_info

    print_info(source)
    return 0


def convert(arguments: Sequence[str]) -> int:
    """Import a rule of others; see :mod:`lightning_lopt.io.importers.convert`."""
    from lightning_lopt.io.importers.convert import convert_main

    return convert_main(arguments)


def push(arguments: Sequence[str]) -> int:
    """Upload a saved rule; see :func:`lightning_lopt.io.push_rule`."""
    parser = CommandParser(
        "push",
        "Upload a saved rule to the Hugging Face Hub: weights (safetensors), config (JSON) and card, nothing else. The "
        "token is that of 'hf auth login', or of HF_TOKEN.",
        example="lightning-lopt push my_rule user/my-rule --private",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder that save_rule, meta-training or convert has made")
    parser.add_argument("name", metavar="OWNER/NAME", help="of the repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--message", default="Upload a rule", help="of the commit")
    given = parser.parse_args(arguments)

    from lightning_lopt.io import push_rule

    address = push_rule(given.folder, given.name, private=given.private, message=given.message)
    say(f"pushed; load it with load_rule({address!r})")
    return 0


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


COMMANDS: dict[str, Command] = {
    "meta-train": meta_train,
    "convert": convert,
    "push": push,
    "info": info,
    "evaluate": evaluate,
    "compare": compare,
    "baselines": baselines,
    "assess": assess,
    "benchmark": benchmark,
}
LONG = ("meta-train", "evaluate", "compare", "baselines", "assess", "benchmark")
"""Commands that take longer than a few seconds, and show how far they are."""
