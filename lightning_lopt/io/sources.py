"""Where a rule's files are: embedded in the package, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_lopt import pretrained
from lightning_lopt.io.files import CONFIG, LIMITS, TAKE_AGAIN, RuleFile, RuleFileError, cause, show

HUB = "hf://"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_HUB_SOURCE = re.compile(rf"hf://(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?")


def available_rules() -> list[str]:
    """Names of the rules whose weights are embedded in the package."""
    return sorted(folder.name for folder in pretrained.ROOT.iterdir() if (folder / CONFIG).is_file())


def find_files(source: str | os.PathLike[str], names: Sequence[str]) -> dict[str, RuleFile]:
    """The files called ``names`` of the rule ``source``, by name; files on the Hub are downloaded.

    Args:
        source: name of embedded weights, a folder, or ``hf://owner/name[@revision]``.
        names: some of ``CONFIG``, ``WEIGHTS`` and ``CARD``.

    Raises:
        RuleFileError: if there is no such rule, or it could not be downloaded.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _hub_files(source, names)
    if not isinstance(source, str | os.PathLike):
        raise RuleFileError(
            f"the source of a rule is {show(source)}; use a name, a folder or an address hf://owner/name."
        )
    embedded = available_rules()
    folder = pretrained.ROOT / source if source in embedded else Path(source)
    if not os.path.isdir(folder):  # False for every odd name, where Path.is_dir raises for some
        raise RuleFileError(
            f"{show(str(source))} is neither a folder nor an embedded rule; use a folder or one of: "
            f"{', '.join(embedded)}."
        )
    return {name: RuleFile(name, str(folder / name), folder / name, folder) for name in names}


def _hub_files(source: str, names: Sequence[str]) -> dict[str, RuleFile]:
    match = _HUB_SOURCE.fullmatch(source)
    if match is None:
        raise RuleFileError(
            f"{show(source)} is not an address on the Hub; write hf://owner/name or hf://owner/name@revision."
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise RuleFileError(f"{source} is on the Hugging Face Hub; run 'pip install huggingface_hub' first.") from None

    repo, revision = match["repo"], match["revision"]
    sizes: dict[str, int | None] | None = None
    offline: Exception | None = None
    try:
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
        revision = info.sha or revision  # one commit for all files, even while somebody pushes
    except Exception as error:  # unreachable: the cache of an earlier download will do
        offline = error

    files = {}
    for name in names:
        label = f"{source}/{name}"
        if sizes is not None and name not in sizes:
            raise RuleFileError(f"{label} is missing; check that {repo} is a rule saved by lightning_lopt.")
        size = None if sizes is None else sizes[name]
        if size is not None and size > LIMITS[name]:
            raise RuleFileError(
                f"{label} is too large, {size} bytes where at most {LIMITS[name]} are read; {TAKE_AGAIN}."
            )
        try:
            path = hub.hf_hub_download(repo, name, revision=revision, local_files_only=sizes is None)
        except Exception as error:
            raise RuleFileError(
                f"{label} could not be downloaded ({cause(offline or error)}); check the address, the network and, "
                "for a private repository, your login."
            ) from error
        files[name] = RuleFile(name, label, Path(path), None)
    return files
