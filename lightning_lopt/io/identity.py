"""Which rule is this, and what does it say it was meta-trained on?"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from lightning_lopt.io.files import CONFIG, RuleFileError, parse_json_object, read_file, show
from lightning_lopt.io.save import weights_bytes
from lightning_lopt.io.sources import find_files
from lightning_lopt.rules import UpdateRule


def weights_sha256(rule: UpdateRule) -> str:
    """The hash that ``config.json`` would have for the weights of ``rule``.

    Raises:
        RuleFileError: if they could not be saved, for instance because they are not finite.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> weights_sha256(AdamRule(0.01)) == weights_sha256(AdamRule(0.01)) != weights_sha256(AdamRule(0.02))
        True
    """
    return hashlib.sha256(weights_bytes(rule, rule.rule_name)).hexdigest()


def load_meta_training(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``config.json`` of the rule at ``source`` says about its meta-training; empty where it says nothing.

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
    found = parse_json_object(read_file(file), file.label).get("meta_training", {})
    if not isinstance(found, dict):
        raise RuleFileError(f"{file.label} has the meta_training {show(found)} instead of an object; correct it.")
    return found
