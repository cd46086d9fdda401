"""Which rule was measured, and what it says of its meta-training."""

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
    """Which rule was measured.

    Attributes:
        rule: its name in the registry (``"residual"``).
        config: arguments that build it.
        weights_sha256: of its weights.
        meta_parameters: how many numbers θ has.
        trained_on: what it was meta-trained on: lists of names ``families`` and ``data``, and ``horizons``, the
            shortest and the longest; ``chosen_on``, names of the problems on which it was chosen among others; empty
            where the rule does not say.
        source: name or folder it was loaded from, empty for a rule in memory.

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
            rule: any; where its weights could not be saved, their hash is left empty.
            trained_on: what it says of its meta-training; other entries than those that are wanted may be there.
            source: where it comes from.

        Raises:
            ValueError: if ``trained_on`` holds something else than lists of names and two horizons.
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
    """The entries of :attr:`RuleRecord.trained_on` in what a rule says of its meta-training, as far as they are there.

    Raises:
        ValueError: if one of them is there and not what it should be.
    """
    entry = {} if content is None else as_object(content, "trained_on")
    found: dict[str, Any] = {}
    for key in ("families", "data", "chosen_on"):
        if key in entry:
            found[key] = [as_name(name) for name in as_list(entry[key], key)]
    if "horizons" in entry:
        horizons = as_list(entry["horizons"], "horizons")
        if len(horizons) != 2 or not all(type(value) is int and value > 0 for value in horizons):
            raise ValueError(f"horizons must be the shortest and the longest number of steps, got {show(horizons)}")
        found["horizons"] = horizons
    return found
