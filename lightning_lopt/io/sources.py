"""Sources of the files of a rule: the package, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_lopt import pretrained
from lightning_lopt.errors import RuleFileError, cause, show
from lightning_lopt.extras import how_to_install
from lightning_lopt.io.files import CARD, CONFIG, FOREIGN, LIMITS, TAKE_AGAIN, THETA, WEIGHTS, RuleFile
from lightning_lopt.rules import RULES

HUB = "hf://"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_HUB_SOURCE = re.compile(rf"hf://(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?")


def is_hub_name(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name`` of a repository on the Hub.

    >>> is_hub_name("user/my-rule"), is_hub_name("my-rule"), is_hub_name("user/my-rule@main")
    (True, False, False)
    """
    return isinstance(name, str) and re.fullmatch(f"{_PART}/{_PART}", name) is not None


def available_rules() -> list[str]:
    """Names of the rules whose weights are embedded in the package.

    Example:
        >>> available_rules()
        ['base', 'celo2']
    """
    return sorted(folder.name for folder in pretrained.ROOT.iterdir() if (folder / CONFIG).is_file())


def find_files(source: str | os.PathLike[str], names: Sequence[str]) -> dict[str, RuleFile]:
    """The files ``names`` of the rule at ``source``, by name; files on the Hub are downloaded.

    Args:
        source: name of embedded weights, a folder, or ``hf://owner/name[@revision]``.
        names: some of ``CONFIG``, ``WEIGHTS`` and ``CARD``.

    Raises:
        RuleFileError: if there is no such rule, or a file could not be downloaded.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _hub_files(source, names)
    if not isinstance(source, str | os.PathLike):
        raise RuleFileError(
            f"the source of a rule is {show(source)}; use a name, a folder or an address hf://owner/name."
        )
    embedded = available_rules()
    folder = pretrained.ROOT / source if source in embedded else Path(source)
    if not os.path.isdir(folder):  # False for any invalid path; Path.is_dir raises for some of them
        raise _no_rule(str(source), embedded)
    return {name: RuleFile(name, str(folder / name), folder / name, folder) for name in names}


def _no_rule(source: str, embedded: Sequence[str]) -> RuleFileError:
    """The error for a source that is not a folder, not an address and not the name of embedded weights."""
    rule, embedded_names = RULES.get(source.lower()), ", ".join(embedded)
    if rule is None:
        return RuleFileError(
            f"{show(source)} is neither a folder nor an embedded rule; use a folder or one of: {embedded_names}."
        )
    if not rule.starts_random:
        return RuleFileError(f"rule {rule.rule_name!r} has no embedded weights and needs none; pass {rule.__name__}().")
    return RuleFileError(
        f"rule {rule.rule_name!r} has no embedded weights (these have: {embedded_names}); convert published weights, "
        "for instance of VeLO, with 'lightning-lopt convert SRC FOLDER' and load the folder, or meta-train the rule "
        "with MetaTrainer."
    )


class _Repository:
    """A repository on the Hub at one commit; a push during the download does not mix versions.

    Attributes:
        address: ``hf://owner/name@commit``.
        sizes: bytes of the repository's files by name; ``None`` if the Hub cannot be reached, and only files in the
            cache of an earlier download can be read.
    """

    def __init__(self, source: str) -> None:
        match = _HUB_SOURCE.fullmatch(source)
        if match is None:
            raise RuleFileError(
                f"{show(source)} is not an address on the Hub; write hf://owner/name or hf://owner/name@revision."
            )
        try:
            self._hub: Any = importlib.import_module("huggingface_hub")
        except ImportError:
            raise RuleFileError(
                f"{source} is on the Hugging Face Hub, which needs huggingface_hub; {how_to_install('hub')}."
            ) from None
        self.source, self.repo, self._revision = source, match["repo"], match["revision"]
        self.sizes: dict[str, int | None] | None = None
        self._offline: Exception | None = None
        try:
            info = self._hub.HfApi().model_info(self.repo, revision=self._revision, files_metadata=True)
            self.sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
            self._revision = info.sha or self._revision
        except Exception as error:
            self._offline = error
        self.address = f"{HUB}{self.repo}@{self._revision}" if self._revision else f"{HUB}{self.repo}"

    def file(self, name: str) -> RuleFile:
        """Download a file and return it."""
        label = f"{self.source}/{name}"
        size = None if self.sizes is None else self.sizes[name]
        if size is not None and size > LIMITS[name]:
            raise RuleFileError(
                f"{label} is too large: it has {size} bytes, and the limit is {LIMITS[name]}; {TAKE_AGAIN}."
            )
        try:
            path = self._hub.hf_hub_download(
                self.repo, name, revision=self._revision, local_files_only=self.sizes is None
            )
        except Exception as error:
            raise RuleFileError(
                f"{label} could not be downloaded ({cause(self._offline or error)}); check the address, the network "
                "and, for a private repository, your login."
            ) from error
        return RuleFile(name, label, Path(path), None)


def _hub_files(source: str, names: Sequence[str]) -> dict[str, RuleFile]:
    repository, files = _Repository(source), {}
    for name in names:
        if repository.sizes is not None and name not in repository.sizes:
            raise RuleFileError(
                f"{source}/{name} is missing; check that {repository.repo} contains a rule saved by lightning_lopt."
            )
        files[name] = repository.file(name)
    return files


def find_foreign(source: str | os.PathLike[str]) -> tuple[dict[str, RuleFile], str]:
    """The files of a rule in a foreign format, by name, and their source (with a commit for a source on the Hub).

    Args:
        source: a file, a folder, or ``hf://owner/name[@revision]``.

    Returns:
        The first file of ``FOREIGN`` that exists, and ``CONFIG`` and ``CARD`` of the folder if they exist. If
        ``source`` is a file, its name is ``WEIGHTS`` for the suffix .safetensors, and ``THETA`` for other suffixes.

    Raises:
        RuleFileError: if there is no such file, or a file could not be downloaded.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _foreign_on_hub(source)
    path, origin = Path(source), os.fspath(source)
    if not os.path.exists(path):
        raise RuleFileError(
            f"{show(origin)} is neither a file nor a folder; use a file, a folder or an address {HUB}owner/name."
        )
    if not os.path.isdir(path):
        name = WEIGHTS if path.suffix == ".safetensors" else THETA
        return {name: RuleFile(name, origin, path, None)}, origin
    weights = [name for name in FOREIGN if os.path.lexists(path / name)][:1]
    if not weights:
        raise RuleFileError(f"{show(origin)} has none of {', '.join(FOREIGN)}; give the path of the file itself.")
    optional_files = [name for name in (CONFIG, CARD) if os.path.lexists(path / name)]
    return {name: RuleFile(name, str(path / name), path / name, path) for name in weights + optional_files}, origin


def _foreign_on_hub(source: str) -> tuple[dict[str, RuleFile], str]:
    repository = _Repository(source)
    files: dict[str, RuleFile] = {}
    error = RuleFileError(f"{source} has none of {', '.join(FOREIGN)}; check the address.")
    if repository.sizes is not None and not repository.sizes.keys() & {*FOREIGN}:
        raise error
    for name in (*FOREIGN, CONFIG, CARD):
        if (name in FOREIGN and files) or (repository.sizes is not None and name not in repository.sizes):
            continue
        try:
            files[name] = repository.file(name)
        except RuleFileError as download_error:
            if repository.sizes is not None:
                raise
            error = download_error  # without a list of files, a file that is not in the cache may not exist
    if not files.keys() & {*FOREIGN}:
        raise error
    return files, repository.address
