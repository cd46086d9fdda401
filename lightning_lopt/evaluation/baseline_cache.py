"""The JSON file that keeps measurements of baselines: checked when read, replaced as a whole when written.

Processes that share a file take turns: each reads what the others have added, and adds its own, under a lock.
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
"""The most bytes that are read; an entry takes some 4 KiB."""
TOLERANCE = 2e-3
"""Relative differences of fingerprints up to here are those of machines and versions."""
LOCK_SECONDS = 60.0
"""How long to wait for other processes, which need a fraction of a second each."""


@dataclass(frozen=True)
class BaselineRecord:
    """What one baseline reached on one problem, as the file keeps it.

    Attributes:
        key: hash of the exact part of what it depends on.
        problem: name of the problem it was computed for, for people.
        fingerprint: the inexact part, see :func:`~lightning_lopt.evaluation.baselines.fingerprint`.
        sweep: median final training loss at each candidate, in the order of the sweep; infinite where it diverged.
        measurement: the run at the chosen one.
    """

    key: str
    problem: str
    fingerprint: list[float]
    sweep: list[float]
    measurement: Measurement

    def fits(self, marks: Sequence[float]) -> bool:
        """Whether ``marks`` are this entry's, as another machine computes them."""
        pairs = zip(self.fingerprint, marks, strict=False)
        return len(marks) == len(self.fingerprint) and all(
            math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-7) for one, other in pairs
        )


def read_entries(path: Path) -> list[BaselineRecord]:
    """The entries of a file.

    Raises:
        ValueError: if it is not one of baselines, damaged, of another format, or cannot be read.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it holds more than {LIMIT // MIB} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {show(content['format'])}, not {FORMAT}")
        return [_from_json(one) for one in content["entries"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"{cause(error)} is missing" if isinstance(error, KeyError) else cause(error)
        raise ValueError(
            f"{path} is not a file of baselines ({reason}); delete it, and they are computed anew."
        ) from None


def add_entries(path: Path, entries: Sequence[BaselineRecord]) -> list[BaselineRecord]:
    """Add to the file what it does not hold yet; the folder is made.

    Returns:
        all entries that the file has then, those of other processes among them.

    Raises:
        OSError: if it cannot be written, or another process has kept it locked for a minute.
        ValueError: if what is there is not a file of baselines; it stays as it is.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
        there = read_entries(path) if path.exists() else []
        known = [(entry.key, entry.fingerprint) for entry in there]
        there += [entry for entry in entries if (entry.key, entry.fingerprint) not in known]
        write_entries(path, there)
    return there


def write_entries(path: Path, entries: Sequence[BaselineRecord]) -> None:
    """Replace the file by these entries, one a line; a crash leaves the old file or the new one."""
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
