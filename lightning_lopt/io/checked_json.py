"""JSON files of results. They are written atomically, and read as untrusted input of bounded size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_lopt.errors import show
from lightning_lopt.io.files import parse_json_object
from lightning_lopt.io.whole import write_whole

LARGEST = 64 * 2**20  # bytes of a file
_MAX_ENTRIES = 1000  # entries of an object or a list
_MAX_CHARACTERS = 20_000  # characters of a text

_Result = TypeVar("_Result")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to a file atomically; the folder of the file is made if necessary."""
    write_whole(path, json.dumps(content, allow_nan=False) + "\n")


def read_json(path: Path, build: Callable[[Any], _Result]) -> _Result:
    """The result of ``build`` for the object in a JSON file of bounded size.

    Raises:
        ValueError: if the file contains no such object, or ``build`` refuses the object; the message names the file.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        return build(parse_json_object(data, path.name))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} has no results that can be read ({reason}); make them again.") from None


def as_object(value: Any, label: str) -> dict[str, Any]:
    """Return ``value``, after a check that it is an object of bounded size; ``label`` names it in messages."""
    if not isinstance(value, dict) or len(value) > _MAX_ENTRIES:
        raise ValueError(f"{label} must be an object of at most {_MAX_ENTRIES} entries, got {show(value)}")
    return value


def as_list(value: Any, label: str) -> Sequence[Any]:
    """Return ``value``, after a check that it is a list of bounded length; ``label`` names it in messages."""
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise ValueError(f"{label} must be a list of at most {_MAX_ENTRIES} entries, got {show(value)}")
    return value


def as_name(value: Any) -> str:
    """Return ``value``, after a check that it is a text of bounded length."""
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        raise ValueError(f"a text of at most {_MAX_CHARACTERS} characters is missing, got {show(value)}")
    return value


def text_of(entry: dict[str, Any], key: str) -> str:
    """The text of bounded length under ``key``."""
    if not isinstance(entry.get(key), str) or len(entry[key]) > _MAX_CHARACTERS:
        raise ValueError(f"{key} must be a text of at most {_MAX_CHARACTERS} characters, got {show(entry.get(key))}")
    return str(entry[key])


def whole_number_of(entry: dict[str, Any], key: str) -> int:
    """The whole number in [0, 2^63) under ``key``."""
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{key} must be a whole number >= 0, got {show(value)}")
    return value


def as_positive(value: Any, label: str) -> float:
    """Return ``value``, after a check that it is a positive number; ``label`` names it in messages."""
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{label} must be a positive number, got {show(value)}")
    return float(value)
