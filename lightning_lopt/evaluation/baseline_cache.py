"""The JSON file of measured baselines: it is checked when it is read, and replaced as a whole when it is written.

Processes that share a file take turns: under a lock, each reads the entries of the others, and adds its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lopt.evaluation.measurement import Measurement, six_digits
from lightning_lopt.io.files import MIB, cause, show
from lightning_lopt.io.whole import write_whole

FORMAT = 1
LIMIT = 64 * MIB
"""Largest number of bytes that are read; an entry takes some 4 KiB."""
TOLERANCE = 2e-3
"""Largest relative difference of fingerprints between machines and versions."""
LOCK_SECONDS = 60.0
"""Longest wait for other processes, each of which needs a fraction of a second."""


@dataclass(frozen=True)
class BaselineRecord:
    """The measurement of one baseline on one problem, as an entry of the file.

    Attributes:
        key: hash of the exact settings that the measurement depends on.
        problem: name of the problem, for readers of the file.
        fingerprint: inexact numbers of the task, see :func:`~lightning_lopt.evaluation.baselines.fingerprint`.
        sweep: median final training loss at each candidate, in the order of the sweep; infinite where it diverged.
        measurement: the run at the chosen candidate.
    """

    key: str
    problem: str
    fingerprint: list[float]
    sweep: list[float]
    measurement: Measurement

    def fits(self, marks: Sequence[float]) -> bool:
        """Whether ``marks`` are equal to the fingerprint, up to differences between machines."""
        pairs = zip(self.fingerprint, marks, strict=False)
        return len(marks) == len(self.fingerprint) and all(
            math.isclose(stored, mark, rel_tol=TOLERANCE, abs_tol=1e-7) for stored, mark in pairs
        )


def read_entries(path: Path) -> list[BaselineRecord]:
    """The entries of a file.

    Raises:
        ValueError: if it is no file of baselines, damaged, of another format, or cannot be read.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it holds more than {LIMIT // MIB} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {show(content['format'])}, not {FORMAT}")
        return [_from_json(entry) for entry in content["entries"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"{cause(error)} is missing" if isinstance(error, KeyError) else cause(error)
        raise ValueError(
            f"{path} is not a file of baselines ({reason}); delete it, and they are computed anew."
        ) from None


def add_entries(path: Path, entries: Sequence[BaselineRecord]) -> list[BaselineRecord]:
    """Add the missing entries to the file; the folder is made.

    Returns:
        all entries of the file then, including those of other processes.

    Raises:
        OSError: if it cannot be written, or another process has locked it for a minute.
        ValueError: if the file exists and is no file of baselines; it is not changed.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
        stored = read_entries(path) if path.exists() else []
        stored_keys = [(entry.key, entry.fingerprint) for entry in stored]
        stored += [entry for entry in entries if (entry.key, entry.fingerprint) not in stored_keys]
        write_entries(path, stored)
    return stored


def write_entries(path: Path, entries: Sequence[BaselineRecord]) -> None:
    """Replace the file by these entries, one per line; after a crash the old file or the new one exists."""
    lines = [json.dumps(_to_json(entry), separators=(",", ":")) for entry in entries]
    write_whole(path, f'{{"format":{FORMAT},"entries":[\n' + ",\n".join(lines) + "\n]}\n")


def _to_json(entry: BaselineRecord) -> dict[str, Any]:
    return {
        "key": entry.key,
        "problem": entry.problem,
        "fingerprint": entry.fingerprint,
        "sweep": [six_digits(value) for value in entry.sweep],
        "measurement": entry.measurement.to_json(),
    }


def _from_json(content: Any) -> BaselineRecord:
    return BaselineRecord(
        str(content["key"]),
        str(content["problem"]),
        [float(value) for value in content["fingerprint"]],
        [math.inf if value is None else float(value) for value in content["sweep"]],
        Measurement.from_json(content["measurement"]),
    )
