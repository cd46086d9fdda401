"""Texts as numbers: sources of Python's standard library, a string, or any text file."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

MIN_CHARACTERS = 2_000
MAX_BYTES = 64 * 2**20
MODULES = (
    "argparse",
    "ast",
    "configparser",
    "datetime",
    "difflib",
    "doctest",
    "inspect",
    "ipaddress",
    "mailbox",
    "pickle",
    "random",
    "statistics",
    "subprocess",
    "tarfile",
    "textwrap",
    "typing",
)
"""Modules of the standard library whose sources are read: plain Python in every installation, 20 to 120 kB each."""
OTHER_MODULES = (
    "_pydecimal",
    "turtle",
    "pydoc",
    "_pyio",
    "pickletools",
    "locale",
    "enum",
    "pdb",
    "optparse",
    "dataclasses",
    "threading",
    "shutil",
    "imaplib",
    "smtplib",
    "platform",
    "traceback",
    "functools",
    "socket",
)
"""Further modules, 20 to 230 kB each, only for suites: no family reads them, so no rule was meta-trained on them."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text as numbers; :meth:`from_string` checks it.

    Attributes:
        tokens: rank of each character in the alphabet, int64, shape ``(N,)``.
        alphabet: the characters, most frequent first.
        name: short, for task names and messages.

    Example:
        >>> text = Text.from_string("a rose is a rose is a rose " * 100, "rose")
        >>> text.alphabet, text.tokens[:6].tolist()
        (' saeori', [2, 0, 5, 4, 1, 3])
    """

    tokens: Tensor
    alphabet: str
    name: str

    @classmethod
    def from_string(cls, characters: str, name: str = "text") -> Text:
        """A text from its characters.

        Raises:
            ValueError: if the text is too short to learn from, or repeats one character.
        """
        if len(characters) < MIN_CHARACTERS:
            raise ValueError(
                f"{name}: the text has {len(characters)} characters; give {MIN_CHARACTERS} characters or more."
            )
        counts = Counter(characters)
        if len(counts) < 2:
            raise ValueError(f"{name}: the text repeats one character only; give a text with at least two.")
        alphabet = "".join(sorted(counts, key=lambda character: (-counts[character], character)))
        rank = {character: index for index, character in enumerate(alphabet)}
        return cls(torch.tensor([rank[character] for character in characters]), alphabet, name)

    def __len__(self) -> int:
        return len(self.tokens)

    def in_alphabet(self, alphabet: str) -> Tensor:
        """The text in another alphabet, int64, shape ``(N,)``; a character that is missing there gets the last number.

        Args:
            alphabet: the characters of the other text, at least one.

        Example:
            >>> text = Text(torch.tensor([0, 1, 2, 0]), "abc", "text")
            >>> text.in_alphabet("cba-")
            tensor([2, 1, 0, 2])
        """
        rank = {character: index for index, character in enumerate(alphabet)}
        return torch.tensor([rank.get(character, len(alphabet) - 1) for character in self.alphabet])[self.tokens]


TextLike: TypeAlias = "Text | str | Path | Sequence[Text | str | Path]"


def load_text(path: str | Path) -> Text:
    """A text file in UTF-8.

    Raises:
        ValueError: if the file does not exist, is not text, or is too short or too long.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "rose.txt")
        ...     _ = path.write_text("a rose is a rose is a rose " * 100, encoding="utf-8")
        ...     text = load_text(path)
        >>> text.name, len(text)
        ('rose', 2700)
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path}: no such text file; give the path of a text file, or "stdlib" for Python\'s sources.')
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: the file has {path.stat().st_size} bytes, more than {MAX_BYTES}; cut a part out of it."
        )
    try:
        characters = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a text in UTF-8 (byte {error.start} is invalid); convert it, or give another file."
        ) from error
    return Text.from_string(characters, path.stem)


@cache
def standard_library(modules: tuple[str, ...] | None = None) -> tuple[Text, ...]:
    """The sources of modules of the standard library, one text each; modules are read as files and not imported.

    Args:
        modules: names of the modules; ``None`` for :data:`MODULES`.

    Raises:
        ValueError: if no source is found (a Python without sources).
    """
    texts = []
    for module in MODULES if modules is None else modules:
        spec = importlib.util.find_spec(module)
        path = Path("" if spec is None or spec.origin is None else spec.origin)
        # in newer versions of Python, some modules have only a few lines
        if path.suffix == ".py" and path.stat().st_size > 2 * MIN_CHARACTERS:
            texts.append(load_text(path))
    if not texts:
        raise ValueError("this Python has no sources of its standard library; give the path of a text file.")
    return tuple(texts)


def resolve_texts(text: TextLike | None) -> list[Text]:
    """A list of texts from one or several texts or paths; ``None`` and ``"stdlib"`` mean Python's sources.

    Raises:
        ValueError: if the list is empty, or an entry cannot be loaded.
    """
    text = "stdlib" if text is None else text
    entries = [text] if isinstance(text, (Text, str, Path)) else list(text)
    if not entries:
        raise ValueError("text is an empty list; give texts or paths, or None for Python's sources.")
    texts: list[Text] = []
    for entry in entries:
        if entry == "stdlib":
            texts.extend(standard_library())
        else:
            texts.append(entry if isinstance(entry, Text) else load_text(entry))
    return texts
