"""The record of a measured rule: its identity, and its meta-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_lopt.evaluation.json_files import as_list, as_name, as_object, text_of, whole_of
from lightning_lopt.io import RuleFileError, weights_sha256
from lightning_lopt.io.files import show
from lightning_lopt.rules.base import UpdateRule


@dataclass(frozen=True)
class RuleRecord:
    """The record of a measured rule.

    Attributes:
        rule: name of the rule in the registry (``"residual"``).
        config: arguments that build the rule.
        weights_sha256: SHA-256 of its weights.
        meta_parameters: number of entries of θ.
        trained_on: record of its meta-training: lists of names ``families`` and ``data``; ``horizons``, the shortest
            and the longest; ``chosen_on``, names of the problems on which it was chosen among others. Missing entries
            are not recorded.
        source: name or folder from which it was loaded, empty for a rule in memory.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> record = RuleRecord.of(AdamRule(), {"families": ["image_mlp"], "horizons": [100, 1000]})
        >>> record.rule, record.meta_parameters, record.trained_on
        ('adam', 1, {'families': ['image_mlp'], 'horizons': [100, 1000]})
    """

    rule: str
    config: dict[str, Any]
    weights_sha256: str
    meta_parameters: int
    trained_on: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, rule: UpdateRule, trained_on: Mapping[str, Any] | None = None, source: str = "") -> RuleRecord:
        """The record of a rule in memory.

        Args:
            rule: the rule; if its weights cannot be saved, their hash is empty.
            trained_on: its record of meta-training, which may have further entries.
            source: name or folder from which it was loaded.

        Raises:
            ValueError: if an entry of ``trained_on`` is not a list of names, or ``horizons`` are not two numbers.
        """
        try:
            digest = weights_sha256(rule)
        except RuleFileError:
            digest = ""
        count = sum(parameter.numel() for parameter in rule.parameters())
        return cls(rule.rule_name, rule.config, digest, count, checked_training(dict(trained_on or {})), source)

    @classmethod
    def from_json(cls, content: Any) -> RuleRecord:
        """From the attributes as JSON.

        Raises:
            ValueError: if it is anything else.
        """
        entry = as_object(content, "a rule")
        return cls(
            text_of(entry, "rule"),
            as_object(entry.get("config"), "the config of a rule"),
            text_of(entry, "weights_sha256"),
            whole_of(entry, "meta_parameters"),
            checked_training(entry.get("trained_on")),
            text_of(entry, "source"),
        )


def checked_training(content: Any) -> dict[str, Any]:
    """The entries of :attr:`RuleRecord.trained_on` that a record of meta-training has.

    Raises:
        ValueError: if one of them has another type.
    """
    entry = {} if content is None else as_object(content, "trained_on")
    checked: dict[str, Any] = {}
    for key in ("families", "data", "chosen_on"):
        if key in entry:
            checked[key] = [as_name(name) for name in as_list(entry[key], key)]
    if "horizons" in entry:
        horizons = as_list(entry["horizons"], "horizons")
        if len(horizons) != 2 or not all(type(value) is int and value > 0 for value in horizons):
            raise ValueError(f"horizons must be the shortest and the longest number of steps, got {show(horizons)}")
        checked["horizons"] = horizons
    return checked
