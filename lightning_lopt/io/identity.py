"""The identity of a rule: the hash of its weights, and its record of meta-training."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.io.checked_json import as_list, as_name, as_object, as_positive
from lightning_lopt.io.files import CONFIG, parse_json_object, read_file
from lightning_lopt.io.save import weights_bytes
from lightning_lopt.io.sources import find_files
from lightning_lopt.rules import UpdateRule


def weights_sha256(rule: UpdateRule) -> str:
    """The SHA-256 of the weights of ``rule``, as ``config.json`` records it.

    Raises:
        RuleFileError: if the weights cannot be saved, for instance because they are not finite.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> weights_sha256(AdamRule(0.01)) == weights_sha256(AdamRule(0.01)) != weights_sha256(AdamRule(0.02))
        True
    """
    return hashlib.sha256(weights_bytes(rule, rule.rule_name)).hexdigest()


def load_meta_training(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of meta-training in ``config.json`` of the rule at ``source``; empty if the file has no record.

    Raises:
        RuleFileError: if the file is missing or damaged, or the record is refused by :func:`checked_training`.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule, save_rule
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_meta_training(save_rule(AdamRule(), folder, meta_training={"outer_steps": 100}))
        {'outer_steps': 100}
    """
    file = find_files(source, (CONFIG,))[CONFIG]
    meta_training = parse_json_object(read_file(file), file.label).get("meta_training", {})
    if not isinstance(meta_training, dict):
        raise RuleFileError(
            f"{file.label} has the meta_training {show(meta_training)} instead of an object; correct it."
        )
    try:
        checked_training(meta_training)
    except ValueError as error:
        raise RuleFileError(f"{file.label} has a damaged record of meta-training: {error}; correct it.") from None
    return meta_training


def checked_training(content: Any) -> dict[str, Any]:
    """The families, data and horizons in a record of meta-training, after a check of the types of all known entries.

    Args:
        content: lists of names ``families``, ``data`` and ``chosen_on``; pairs of the least and the largest value
            ``horizons`` (steps) and ``batch_sizes``; the number ``largest_parameters``. Each entry may be missing, and
            others are not checked. ``None`` is an empty record.

    Returns:
        the entries ``families``, ``data``, ``chosen_on`` and ``horizons``.

    Raises:
        ValueError: if an entry has another type.
    """
    entry = {} if content is None else as_object(content, "trained_on")
    for key in ("families", "data", "chosen_on"):
        for name in as_list(entry.get(key, []), key):
            as_name(name)
    for key, unit in (("horizons", "number of steps"), ("batch_sizes", "number of examples")):
        if key in entry:
            pair = as_list(entry[key], key)
            if len(pair) != 2 or not all(type(value) is int and value > 0 for value in pair):
                raise ValueError(f"{key} must be the least and the largest {unit}, got {show(pair)}")
    if "largest_parameters" in entry:
        as_positive(entry["largest_parameters"], "largest_parameters")
    return {key: entry[key] for key in ("families", "data", "chosen_on", "horizons") if key in entry}
