"""The identity of a rule: the hash of its weights, and its record of meta-training."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from lightning_lopt.errors import RuleFileError, show
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
        RuleFileError: if the file is missing or damaged.

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
    return meta_training
