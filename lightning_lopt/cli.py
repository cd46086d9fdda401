"""The command ``lightning-lopt``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_lopt.__about__ import __version__
from lightning_lopt.command_line import BAD_INPUT, Command, CommandParser, run
from lightning_lopt.terminal import complain, say

USAGE = """usage: lightning-lopt COMMAND ...

  meta-train   meta-train a rule; --config FILE, --print_config, --ckpt_path FILE to resume;
               a config is code (it names classes to build): run only configs that you trust
  convert SRC DST  convert a rule of flax or PyLO (file, folder or hf://owner/name@revision) to our format
  push FOLDER OWNER/NAME  upload a saved rule to the Hugging Face Hub
  info RULE    show the key numbers, costs, inputs and card of an embedded rule or a folder
  evaluate RULE  compare a rule with tuned baselines: --suite NAME (or your FILE.py:NAME) --against NAMES --out DIR
  compare A B ... measure several rules in one report; RULE@start is a rule before meta-training
  baselines    tune hand-designed optimizers on suites of problems: --suite NAMES --out FILE
  assess FILE.py:MODEL --total-steps N   recommend whether to train your module with a rule
  benchmark MODEL ...  measure time and memory of a step, in comparison with AdamW

lightning-lopt COMMAND --help   show all options of a command, and an example
lightning-lopt --version   show the version
lightning-lopt --traceback COMMAND ...   show where an error comes from

Exit status: 0 for success; 1 if the machine lacks something (a package, space on the disk); 2 for bad input; 3 if
assess has the verdict "don't".
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    traceback = words[:1] == ["--traceback"]
    words = words[1:] if traceback else words
    if not words:
        print(USAGE, file=sys.stderr)
        return BAD_INPUT
    command, options = words[0], words[1:]
    if command == "--version":
        say(f"lightning-lopt {__version__}")
        return 0
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        names = ", ".join(COMMANDS)
        complain(f"lightning-lopt: there is no command {command!r}; use one of {names}, or 'lightning-lopt --help'.")
        return BAD_INPUT
    if command in SLOW and not {"-h", "--help"} & {*options}:
        complain(f"lightning-lopt {command}: loading PyTorch and Lightning")  # the imports take seconds
    return run(COMMANDS[command], options, traceback=traceback)


def meta_train(arguments: Sequence[str]) -> int:
    """Meta-train a rule; see :mod:`lightning_lopt.meta.command`."""
    from lightning_lopt.meta.command import meta_train_main

    return meta_train_main(arguments)


def info(arguments: Sequence[str]) -> int:
    """Print the properties of a rule; see :mod:`lightning_lopt.info`."""
    parser = CommandParser(
        "info",
        "Show the properties of a rule: key numbers first, then costs and inputs, then the card.",
        example="lightning-lopt info base",
    )
    parser.add_argument("rule", metavar="RULE", help="embedded rule, folder or hf:// address")
    source = parser.parse_args(arguments).rule

    from lightning_lopt.info import print_info

    print_info(source)
    return 0


def convert(arguments: Sequence[str]) -> int:
    """Convert a rule of another package; see :mod:`lightning_lopt.io.importers.convert`."""
    from lightning_lopt.io.importers.convert import convert_main

    return convert_main(arguments)


def push(arguments: Sequence[str]) -> int:
    """Upload a saved rule; see :func:`lightning_lopt.io.push_rule`."""
    parser = CommandParser(
        "push",
        "Upload a saved rule to the Hugging Face Hub: weights (safetensors), config (JSON) and card, nothing else. The "
        "token comes from 'hf auth login' or from the variable HF_TOKEN.",
        example="lightning-lopt push my_rule user/my-rule --private",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder of save_rule, meta-training or convert")
    parser.add_argument("name", metavar="OWNER/NAME", help="name of the repository, which is made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--message", default="Upload a rule", help="message of the commit")
    options = parser.parse_args(arguments)

    from lightning_lopt.io import push_rule

    address = push_rule(options.folder, options.name, private=options.private, message=options.message)
    say(f"the rule was pushed; load it with load_rule({address!r})")
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
    """Recommend whether to train a module with a rule; see :mod:`lightning_lopt.assessment`."""
    from lightning_lopt.assessment.command import assess_command

    return assess_command(arguments)


def benchmark(arguments: Sequence[str]) -> int:
    """Measure time and memory of a step; see :mod:`lightning_lopt.evaluation.benchmark.command`."""
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
SLOW = ("meta-train", "evaluate", "compare", "baselines", "assess", "benchmark")
"""Commands that take longer than a few seconds, and show their progress."""
