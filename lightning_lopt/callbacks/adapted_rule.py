"""The rule that meta-training beside a fit leaves behind: in a folder, and as an artifact of Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_lopt._lightning import is_lightning
from lightning_lopt.evaluation.report.loggers import log_artifact
from lightning_lopt.io import Card, save_rule
from lightning_lopt.meta.search import Search
from lightning_lopt.rules.base import UpdateRule


def hand_over(trainer: Any, rule: UpdateRule, search: Search, steps: int, folder: Path) -> None:
    """Save ``rule`` in ``folder``, and log it.

    Args:
        trainer: of the fit.
        rule: with the θ that the search has chosen.
        search: what it was adapted by.
        steps: of the fit.
        folder: where to.
    """
    record = {
        "adapted_to": type(trainer.lightning_module).__name__,
        "steps": steps,
        "rounds": search.rounds,
        "evidence": search.evidence,
        "handed_back": not search.improving,
    }
    card = Card(
        f"{rule.rule_name}, adapted to {record['adapted_to']}",
        f"{', '.join(search.start)}: meta-trained by OnlineMetaTraining on one model while that was trained, in "
        f"{search.rounds} rounds.",
        limitations="It is meant for models like that one, and for runs of about the same length.",
    )
    save_rule(rule, folder, card=card, meta_training=record)
    rank_zero_info(f"OnlineMetaTraining: {search.rounds} rounds; the rule is in {folder}.")
    for logger in trainer.loggers:
        if is_lightning(logger, "WandbLogger"):
            log_artifact(logger, "adapted_rule", folder, kind="rule", metadata=record)
