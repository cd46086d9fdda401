"""Saving of a rule in a folder, completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise

from lightning_lopt.__about__ import __version__
from lightning_lopt.errors import RuleFileError, cause, show
from lightning_lopt.io.card import Card
from lightning_lopt.io.files import CARD, CONFIG, PENDING, WEIGHTS
from lightning_lopt.io.header import DTYPES
from lightning_lopt.io.load import FORMAT, FORMAT_VERSION, load_card, load_rule
from lightning_lopt.io.push import check_hub, push_rule
from lightning_lopt.io.whole import draft_folder, remove_abandoned
from lightning_lopt.rules import RULES, UpdateRule


def save_rule(
    rule: UpdateRule,
    folder: str | os.PathLike[str],
    *,
    card: Card | str | None = None,
    meta_training: Mapping[str, Any] | None = None,
    push_to_hub: str | None = None,
) -> Path:
    """Write ``rule`` as ``model.safetensors``, ``config.json`` and ``README.md``; the same rule gives the same bytes.

    The files are written to a temporary folder and loaded from there before ``folder`` changes. If ``folder`` does not
    exist, the temporary folder is renamed. In an existing folder the three files are replaced, and other files stay.
    After an interruption at any moment, either the old rule or the new rule can be loaded.

    Args:
        rule: an instance of a class decorated with ``register_rule``, on any device.
        folder: folder to write; the folder and its parents are made if they do not exist.
        card: the model card, as :class:`Card` or markdown.
        meta_training: JSON values for ``config.json``, for instance outer steps and meta-loss.
        push_to_hub: a repository ``owner/name`` on the Hugging Face Hub. The folder is uploaded to it, see
            :func:`~lightning_lopt.io.push_rule`.

    Returns:
        ``folder`` as a path.

    Raises:
        RuleFileError: if the rule is not registered, has weights that are not finite, cannot be loaded again, or cannot
            be written; with ``push_to_hub`` also if the folder was written but not pushed.
        ImportError: if ``push_to_hub`` needs ``huggingface_hub``, which is not installed; no file was written.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule, load_rule
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_rule(AdamRule(0.01), folder, meta_training={"outer_steps": 100})
        ...     print(sorted(file.name for file in path.iterdir()))
        ...     print(f"{load_rule(path).log_lr.exp().item():.3f}")
        ['README.md', 'config.json', 'model.safetensors']
        0.010
    """
    target = Path(folder)
    if push_to_hub is not None:
        check_hub(push_to_hub)
    name = getattr(rule, "rule_name", None)
    if not isinstance(rule, UpdateRule) or RULES.get(rule.rule_name) is not type(rule):
        raise RuleFileError(
            f"{target} was not written, because {type(rule).__qualname__} (rule name {show(name)}) is not a registered "
            "rule; decorate the class with @register_rule."
        )
    contents = _contents(rule, target, card, meta_training)
    try:
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        # An existing target may be a mount point. Files move only within one file system, so the draft lies inside it.
        with draft_folder(target if target.is_dir() else target.parent) as draft:
            _write(contents, draft)
            _check_draft(draft, target, contents[WEIGHTS])
            _publish(draft, target, contents[WEIGHTS])
    except RuleFileError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError for a loop of links, ValueError for a null byte
        raise RuleFileError(f"{target} could not be written ({cause(error)}); choose another folder.") from error
    if push_to_hub is not None:
        push_rule(Path(folder).resolve(), push_to_hub)
    return Path(folder)


def _contents(
    rule: UpdateRule, target: Path, card: Card | str | None, meta_training: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """The contents of the three files, as bytes."""
    weights = weights_bytes(rule, target)
    config: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rule": rule.rule_name,
        "config": rule.config,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "lightning_lopt_version": __version__,
    }
    try:
        if meta_training is not None:
            config["meta_training"] = dict(meta_training)
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RuleFileError(
            f"{target / CONFIG} was not written, because the rule's config or meta_training is not JSON "
            f"({cause(error)}); use finite numbers, texts, lists and dictionaries."
        ) from None
    if card is None:
        card = Card(f"Update rule {rule.rule_name}")
    try:
        markdown = (card if isinstance(card, str) else card.render()).encode()
    except UnicodeEncodeError as error:
        raise RuleFileError(
            f"{target / CARD} was not written, because the card is not valid text ({cause(error)}); correct it."
        ) from None
    return {WEIGHTS: weights, CONFIG: text.encode(), CARD: markdown}


def weights_bytes(rule: UpdateRule, target: str | os.PathLike[str]) -> bytes:
    """Contents of ``model.safetensors``; the same θ gives the same bytes. Messages name the folder ``target``."""

    def refuse(name: str, wrong: str) -> RuleFileError:
        return RuleFileError(f"{Path(target) / WEIGHTS} was not written, because {show(name)} of the rule {wrong}.")

    tensors = {}
    for name, tensor in rule.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            raise refuse(name, f"is {show(tensor)}; keep only ordinary tensors in the state of the rule")
        if tensor.dtype not in DTYPES.values():
            raise refuse(name, f"is of {tensor.dtype}; turn it into one of {', '.join(map(str, DTYPES.values()))}")
        if not torch.isfinite(tensor).all():
            raise refuse(name, "has values that are not finite; save an earlier state")
        # The tensor is copied, because safetensors refuses tensors that share memory.
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return serialise(tensors, {"format": "pt"})


def _write(contents: Mapping[str, bytes], draft: Path) -> None:
    for name, data in contents.items():
        with open(draft / name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _check_draft(draft: Path, target: Path, weights: bytes) -> None:
    try:
        is_same = weights_bytes(load_rule(draft), target) == weights
        load_card(draft)
    except RuleFileError as error:
        reason = cause(RuleFileError(str(error).replace(f"{draft}{os.sep}", "")))  # ``cause`` shortens the text
        raise RuleFileError(f"{target} was not written, because it could not be loaded again ({reason}).") from error
    if not is_same:
        raise RuleFileError(
            f"{target} was not written, because the loaded rule has other weights than the saved rule; correct its "
            "class."
        )


def _publish(draft: Path, target: Path, weights: bytes) -> None:
    """Move the draft to ``target``; at each moment in between, either the old rule or the new rule can be loaded.

    ``config.json`` contains the SHA-256 of the weights, so its replacement makes the new rule valid. Until the weights
    are replaced too, ``load_rule`` finds the new weights under the name ``PENDING``. A leftover file of that name is
    harmless.
    """
    try:
        if not target.is_dir():
            os.rename(draft, target)
            return
    except OSError:
        if not target.is_dir():  # otherwise another process has made the folder in the meantime
            raise
    _write({PENDING: weights}, draft)
    for name in (PENDING, CONFIG, WEIGHTS, CARD):
        os.replace(draft / name, target / name)
    (target / PENDING).unlink(missing_ok=True)
