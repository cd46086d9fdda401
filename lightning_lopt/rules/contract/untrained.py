"""The warning about rules that were never meta-trained."""

from __future__ import annotations

from lightning_lopt.rules.base import UpdateRule


def untrained_warning(rule: UpdateRule) -> str | None:
    """One sentence if θ of ``rule`` still has the random values of its constructor, else ``None``.

    Rules that are hand-designed before meta-training, such as :class:`~lightning_lopt.AdamRule` and
    :class:`~lightning_lopt.ResidualRule`, need no training and no warning.

    >>> from lightning_lopt import AdamRule, LSTMRule
    >>> untrained_warning(AdamRule()) is None, untrained_warning(LSTMRule())[:51]
    (True, "rule 'lstm' has random weights: it was neither meta")
    """
    if not rule.starts_random or rule.trained:
        return None
    return (
        f"rule {rule.rule_name!r} has random weights: it was neither meta-trained nor loaded, so its steps do not "
        "train a model; use load_rule(FOLDER), or meta-train it with MetaTrainer (and set rule.trained = True if its "
        "weights were set in another way)."
    )
