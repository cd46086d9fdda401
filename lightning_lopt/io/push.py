"""Upload of a saved rule to the Hugging Face Hub: three files in one commit, checked before the upload."""

from __future__ import annotations

import importlib
import os
from typing import Any

from lightning_lopt.errors import RuleFileError, cause, show
from lightning_lopt.extras import how_to_install
from lightning_lopt.io.card import front_matter_of, with_front_matter
from lightning_lopt.io.files import CARD, CONFIG, LIMITS, WEIGHTS, decode_text, parse_json_object, read_file
from lightning_lopt.io.load import load_rule, read_weights
from lightning_lopt.io.sources import HUB, find_files, is_hub_name

DEFAULTS: dict[str, Any] = {
    "license": "other",
    "library_name": "lightning_lopt",
    "tags": ["learned-optimizer"],
    "metrics": ["loss"],
}
"""Default entries for the front matter of a card on the Hub."""


def push_rule(
    source: str | os.PathLike[str], name: str, *, private: bool | None = None, message: str = "Upload a rule"
) -> str:
    """Upload a saved rule to the Hugging Face Hub, where :func:`~lightning_lopt.load_rule` finds it.

    One commit contains ``model.safetensors``, ``config.json`` and ``README.md``; other files of the folder are not
    uploaded. The rule is loaded first, so that a damaged, too large or foreign file is never sent. Missing entries of
    the card's front matter (licence, library, tags, metrics) are added to the uploaded card. ``huggingface_hub``
    supplies the token, from ``hf auth login`` or from the environment variable ``HF_TOKEN``.

    Args:
        source: the folder, or the name of embedded weights.
        name: name of the repository, ``owner/name``; the repository is made if it does not exist.
        private: whether a new repository is private; ``None`` for the owner's default.
        message: message of the commit.

    Returns:
        ``hf://owner/name@commit``.

    Raises:
        RuleFileError: if the rule cannot be loaded, the name has another form, there is no token, or the Hub refuses.
        ImportError: if ``huggingface_hub`` is not installed.

    Example:
        ``push_rule("my_rule", "user/my-rule")`` returns an address such as ``hf://user/my-rule@0123456...``. A name
        that no repository can have is refused before any file is read or sent:

        >>> try:
        ...     push_rule("my_rule", "my rule")
        ... except RuleFileError as error:
        ...     print(error)
        'my rule' is not the name of a repository on the Hub; write owner/name, as in user/my-rule.
    """
    hub = check_hub(name)
    if isinstance(source, str) and source.startswith(HUB):
        raise RuleFileError(f"{show(source)} is on the Hub already; give the folder of a saved rule.")
    contents = _contents(source, name)
    try:
        api = hub.HfApi()
        api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise RuleFileError(f"{HUB}{name} exists and is public; make it private on the Hub, or give another name.")
        operations = [hub.CommitOperationAdd(path, data) for path, data in contents.items()]
        commit = api.create_commit(name, operations, commit_message=message, repo_type="model")
    except RuleFileError:
        raise
    except Exception as error:  # errors have many classes: no network, no permission, no such owner
        raise RuleFileError(
            f"{show(os.fspath(source))} was not pushed to {HUB}{name} ({cause(error)}); check the name, the network "
            "and the write permission of your token."
        ) from error
    return f"{HUB}{name}@{commit.oid}"


def check_hub(name: str) -> Any:
    """The module ``huggingface_hub``, after a check of the repository's name and of the token.

    Raises:
        RuleFileError: if the name is not of the form ``owner/name``, or there is no token.
        ImportError: if ``huggingface_hub`` is not installed.
    """
    if not is_hub_name(name):
        raise RuleFileError(
            f"{show(name)} is not the name of a repository on the Hub; write owner/name, as in user/my-rule."
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(f"pushing needs huggingface_hub, which is not installed; {how_to_install('hub')}.") from error
    if hub.get_token() is None:
        raise RuleFileError(
            f"{name} was not pushed, because there is no token for the Hub; run 'hf auth login', or set HF_TOKEN to a "
            "token with write permission."
        )
    return hub


def _contents(source: str | os.PathLike[str], name: str) -> dict[str, bytes]:
    """The bytes of the three files of a rule, after a check that the rule and each file can be loaded again."""
    load_rule(source)
    files = find_files(source, (CONFIG, WEIGHTS, CARD))
    config = read_file(files[CONFIG])
    recorded_digest = parse_json_object(config, files[CONFIG].label).get("weights_sha256")
    card = _completed(decode_text(read_file(files[CARD]), files[CARD].label), files[CARD].label, name)
    if len(card) > LIMITS[CARD]:
        raise RuleFileError(
            f"{files[CARD].label} is too large: it has {len(card)} bytes, and the limit is {LIMITS[CARD]}; shorten it."
        )
    return {CARD: card, CONFIG: config, WEIGHTS: read_weights(files[WEIGHTS], recorded_digest)[0]}


def _completed(card: str, label: str, name: str) -> bytes:
    """The card with every entry of :data:`DEFAULTS` in its front matter; existing entries stay."""
    yaml: Any = importlib.import_module("yaml")  # a dependency of huggingface_hub
    text = front_matter_of(card)
    try:
        entries = {} if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RuleFileError(f"the front matter of {label} is not YAML ({cause(error)}); correct it.") from error
    if not isinstance(entries, dict):
        raise RuleFileError(f"the front matter of {label} is {show(entries)}; write lines of the form 'license: mit'.")
    missing = {key: value for key, value in DEFAULTS.items() if key not in entries}
    if not missing:
        return card.encode()
    lines = yaml.safe_dump(missing, sort_keys=False)
    present_lines = "" if text is None else f"{text.rstrip()}\n"
    return with_front_matter(card if card.strip() else f"# {name}\n", present_lines + lines).encode()
