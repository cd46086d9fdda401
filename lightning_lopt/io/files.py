"""Reading of untrusted files: bounded reads, strict JSON."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lopt.errors import RuleFileError, cause, show
from lightning_lopt.rules.contract.build import MAX_BYTES

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
PENDING = WEIGHTS + ".next"
"""Name of the new weights while ``save_rule`` replaces the files of an existing folder."""

THETA = "theta.state"
CHECKPOINT = "params"
FOREIGN = (THETA, CHECKPOINT, WEIGHTS)
"""Names of the file with θ in foreign formats, in this order: Celo and Celo2, google/learned_optimization, PyLO."""

MIB = 2**20
LIMITS = {CONFIG: 1 * MIB, WEIGHTS: MAX_BYTES, CARD: 1 * MIB, THETA: 64 * MIB, CHECKPOINT: 64 * MIB}
"""Largest number of bytes that are read, by name of the file."""

TAKE_AGAIN = "take the folder again from where it came from"

_LONGEST_INTEGER = 20  # digits: enough for 64 bits, and few enough for fast parsing


class RuleFile(NamedTuple):
    """One file of a rule.

    Attributes:
        name: ``CONFIG``, ``WEIGHTS`` or ``CARD``.
        label: name of the file in messages.
        path: path on this machine.
        root: folder that symbolic links must not leave. It is ``None`` for the cache of ``huggingface_hub``, whose
            links are made by the library and not by the author of the repository.
    """

    name: str
    label: str
    path: Path
    root: Path | None


def read_file(file: RuleFile) -> bytes:
    """All bytes of a regular file of bounded size.

    Raises:
        RuleFileError: if the file is missing, not a regular file, a link out of its folder, too large or unreadable.
    """
    limit = LIMITS[file.name]
    try:
        real = file.path.resolve(strict=True)
        if file.root is not None and not real.is_relative_to(file.root.resolve(strict=True)):
            raise RuleFileError(
                f"{file.label} is a link that leads out of its folder, to {show(str(real))}; put the file itself there."
            )
        if not stat.S_ISREG(real.stat().st_mode):  # before opening: opening a pipe would wait for a writer
            raise RuleFileError(f"{file.label} is not a regular file; {TAKE_AGAIN}.")
        with open(
            os.open(real, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)), "rb"
        ) as opened:
            size = os.fstat(opened.fileno()).st_size
            data = b"" if size > limit else opened.read(size)  # read() allocates the whole requested size
    except FileNotFoundError:
        raise RuleFileError(
            f"{file.label} is missing; a rule is a folder with {CONFIG}, {WEIGHTS} and {CARD}."
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise RuleFileError(
            f"{file.label} could not be read ({cause(error)}); check the path and its rights."
        ) from None
    if size > limit:
        raise RuleFileError(f"{file.label} is too large, {size} bytes where at most {limit} are read; {TAKE_AGAIN}.")
    return data


def decode_text(data: bytes, label: str) -> str:
    """Decode ``data`` as UTF-8 text.

    Raises:
        RuleFileError: if the data are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RuleFileError(f"{label} is not UTF-8 text (byte {error.start} is wrong); {TAKE_AGAIN}.") from None


def parse_json_object(data: bytes, label: str) -> dict[str, Any]:
    """Parse a JSON object, more strictly than the standard library.

    A key must not occur twice, numbers must be finite, and integers must not be long.

    Raises:
        RuleFileError: if ``data`` is not such an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise ValueError(f"the key {show(key)} occurs twice")
            entries[key] = value
        return entries

    def short(text: str) -> int:
        if len(text) > _LONGEST_INTEGER:
            raise ValueError(f"the integer {show(text)} has more than {_LONGEST_INTEGER} characters")
        return int(text)

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{show(text)} is not a finite number")
        return value

    text = decode_text(data, label)
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=short, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise RuleFileError(f"{label} is nested too deeply; {TAKE_AGAIN}.") from None
    except ValueError as error:
        raise RuleFileError(f"{label} is not valid JSON ({cause(error)}); {TAKE_AGAIN}.") from None
    if not isinstance(value, dict):
        raise RuleFileError(f"{label} must hold a JSON object but holds {show(value)}; {TAKE_AGAIN}.")
    return value
