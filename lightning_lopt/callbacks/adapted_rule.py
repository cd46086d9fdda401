"""Saves the rule that online meta-training has adapted in a folder, and logs it as a Weights & Biases artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_lopt._lightning import is_lightning
from lightning_lopt.evaluation.report.loggers import log_artifact
from lightning_lopt.io import Card, save_rule
from lightning_lopt.meta.search import Search
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.users_code import named
from lightning_lopt.wording import counted


def save_and_log(trainer: Any, rule: UpdateRule, search: Search, steps: int, folder: Path) -> None:
    """Save and log the rule on rank 0, and warn if it is the rule of the start. A failure also gives a warning.

    Args:
        trainer: Trainer of the fit.
        rule: the rule with the θ that the search has chosen.
        search: the search that has adapted the rule.
        steps: number of steps of the fit.
        folder: folder of the rule.
    """
    if search.rounds and not search.improving:
        rank_zero_warn(
            f"OnlineMetaTraining found no better rule on this model in {counted(search.rounds, 'round')} (evidence "
            f"{search.evidence:+.3f}, where {search.needed:+.3f} or less was needed); the saved rule is "
            "that of the start."
        )
    if trainer.is_global_zero:
        try:
            _save(trainer, rule, search, steps, folder)
        except Exception as error:  # the disk may be full, or a logger may fail
            rank_zero_warn(f"OnlineMetaTraining could not save or log its rule ({named(error)}).")


def _save(trainer: Any, rule: UpdateRule, search: Search, steps: int, folder: Path) -> None:
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
        f"{counted(search.rounds, 'round')}.",
        limitations="It is meant for models like that one, and for runs of about the same length.",
    )
    save_rule(rule, folder, card=card, meta_training=record)
    rank_zero_info(f"OnlineMetaTraining: {counted(search.rounds, 'round')}; the rule is in {folder}.")
    for logger in trainer.loggers:
        if is_lightning(logger, "WandbLogger"):
            log_artifact(logger, "adapted_rule", folder, kind="rule", metadata=record)
