"""``lightning-lopt info``: prints the properties of a rule, the key numbers first."""

from __future__ import annotations

import os

from lightning_lopt.evaluation.benchmark import rule_memory
from lightning_lopt.io import load_card, load_rule
from lightning_lopt.io.card import key_numbers_of
from lightning_lopt.progress import Progress
from lightning_lopt.rules.contract.footprint import footprint_report
from lightning_lopt.terminal import say


def print_info(source: str | os.PathLike[str]) -> None:
    """Print the key numbers, costs and inputs of a rule, its config and its card, and at the end measured memory.

    Args:
        source: name of an embedded rule, a folder, or an ``hf://`` address.

    Raises:
        RuleFileError: if the rule cannot be loaded.
    """
    rule, (key_numbers, card) = load_rule(source), key_numbers_of(load_card(source))
    arguments = ", ".join(f"{name}={value!r}" for name, value in rule.config.items())
    say(f"{source}: the rule {rule.rule_name!r}\n")
    say(key_numbers or "- results: the card of this rule has no key numbers")
    say(f"\n{footprint_report(rule)}")
    say(f"class: {type(rule).__name__}({arguments})\n")
    say(card)
    with Progress(f"measuring memory on {rule_memory.MODEL}"):
        measured = rule_memory.memory_report(rule)
    say(f"\n{measured}")
