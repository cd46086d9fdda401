"""Loading of a rule from a folder; tensors are loaded only after all checks that need no memory for tensors."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from lightning_lopt.errors import RuleFileError, cause, show
from lightning_lopt.io.files import (
    CARD,
    CONFIG,
    PENDING,
    TAKE_AGAIN,
    WEIGHTS,
    RuleFile,
    decode_text,
    parse_json_object,
    read_file,
)
from lightning_lopt.io.header import read_header
from lightning_lopt.io.sources import find_files
from lightning_lopt.rules import RULES, UpdateRule
from lightning_lopt.rules.contract.build import build_rule, check_arguments

FORMAT = "lightning_lopt"
FORMAT_VERSION = 1


def load_rule(source: str | os.PathLike[str]) -> UpdateRule:
    """The rule at ``source``, on the CPU, with exactly the saved weights.

    Files are treated as hostile. Their size is bounded, they can name only a class of the registry, and no memory is
    allocated for tensors before all sizes agree. The random state does not change.

    Args:
        source: name of embedded weights (see :func:`available_rules`), a folder, or ``hf://owner/name[@revision]``
            (needs ``huggingface_hub``). Write ``"./base"`` for a folder that has the name of embedded weights.

    Raises:
        RuleFileError: if a file is missing, damaged, foreign or newer, or the files do not fit together.

    Example:
        >>> rule = load_rule("base")
        >>> rule.rule_name, rule.trained
        ('residual', True)
    """
    files = find_files(source, (CONFIG, WEIGHTS))
    label, weights = files[CONFIG].label, files[WEIGHTS].label
    config = parse_json_object(read_file(files[CONFIG]), label)
    rule_class = _rule_class(config, label)
    arguments = check_arguments(rule_class, config.get("config"), label)

    data, digest = read_weights(files[WEIGHTS], config.get("weights_sha256"))
    specs = read_header(data, weights)
    if config.get("weights_sha256") != digest:
        raise RuleFileError(
            f"{weights} has the SHA-256 {digest[:12]}... but {CONFIG} says {show(config.get('weights_sha256'))}; "
            f"{TAKE_AGAIN}."
        )
    rule = build_rule(rule_class, arguments, specs, label, weights)
    try:
        tensors = load_tensors(data)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise RuleFileError(f"{weights} has values in {show(name)} that are not finite; {TAKE_AGAIN}.")
            if tensor.dtype == torch.bool and tensor.view(torch.uint8).gt(1).any():  # undefined behaviour in C++
                raise RuleFileError(f"{weights} has values in {show(name)} that are not 0 or 1; {TAKE_AGAIN}.")
        rule.load_state_dict(tensors, strict=True)
    except RuleFileError:
        raise
    except Exception as error:  # safetensors may check more strictly than this module
        raise RuleFileError(f"{weights} could not be loaded ({cause(error)}); {TAKE_AGAIN}.") from error
    return rule


def read_weights(file: RuleFile, recorded_digest: Any) -> tuple[bytes, str]:
    """The weights and their SHA-256.

    After an interrupted ``save_rule``, these are the weights whose SHA-256 ``config.json`` contains.

    Args:
        file: ``model.safetensors``.
        recorded_digest: the SHA-256 in ``config.json``.

    Raises:
        RuleFileError: if the file is missing, too large or unreadable.
    """
    data = read_file(file)
    digest = hashlib.sha256(data).hexdigest()
    pending = file.path.with_name(PENDING)
    if digest != recorded_digest and file.root is not None and os.path.isfile(pending):
        pending_data = read_file(file._replace(label=str(pending), path=pending))
        if hashlib.sha256(pending_data).hexdigest() == recorded_digest:
            return pending_data, recorded_digest
    return data, digest


def load_card(source: str | os.PathLike[str]) -> str:
    """The model card of the rule at ``source``, as markdown.

    Raises:
        RuleFileError: if there is no card, or the card is not text.

    Example:
        >>> print(load_card("base").split("---")[2].strip().splitlines()[0])
        # base
    """
    file = find_files(source, (CARD,))[CARD]
    return decode_text(read_file(file), file.label)


def _rule_class(config: dict[str, Any], label: str) -> type[UpdateRule]:
    """The registered class that ``config`` names, after a check of the format and its version."""
    tag, version, name = config.get("format"), config.get("format_version"), config.get("rule")
    if tag != FORMAT:
        raise RuleFileError(f"{label} has the format {show(tag)} instead of {FORMAT!r}; point to a rule's folder.")
    if type(version) is not int or version < 1:
        raise RuleFileError(f"{label} has the format version {show(version)}, which never existed; {TAKE_AGAIN}.")
    if version > FORMAT_VERSION:
        raise RuleFileError(
            f"{label} was made by a newer lightning_lopt (format version {show(version)}; this installation reads "
            f"versions up to {FORMAT_VERSION}); install a newer lightning_lopt."
        )
    if not isinstance(name, str) or name not in RULES:
        raise RuleFileError(
            f"{label} names the rule {show(name)}, which is none of {', '.join(sorted(RULES))}; if you wrote this "
            "rule, import the module that registers it first."
        )
    return RULES[name]
