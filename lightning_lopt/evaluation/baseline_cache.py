"""The JSON file that keeps measurements of baselines: checked when read, replaced as a whole when written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lopt.evaluation.json_files import write_whole
from lightning_lopt.evaluation.measurement import Measurement, six_digits
from lightning_lopt.io.files import MIB

FORMAT = 1
LIMIT = 64 * MIB
"""The most bytes that are read; an entry takes some 4 KiB."""
TOLERANCE = 2e-3
"""Relative differences of fingerprints up to here are those of machines and versions."""


@dataclass(frozen=True)
class Entry:
    """One baseline on one problem.

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


def read_entries(path: Path) -> list[Entry]:
    """The entries of a file.

    Raises:
        ValueError: if it is not one of baselines, damaged, or of another format.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it holds more than {LIMIT // MIB} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        return [_entry(one) for one in content["entries"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(
            f"{path} is not a file of baselines ({reason}); delete it, and they are computed anew."
        ) from None


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Replace the file by these entries, one a line; a crash leaves the old file or the new one."""
    lines = [json.dumps(_to_json(entry), separators=(",", ":")) for entry in entries]
    write_whole(path, f'{{"format":{FORMAT},"entries":[\n' + ",\n".join(lines) + "\n]}\n")


def _to_json(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "problem": entry.problem,
        "fingerprint": entry.fingerprint,
        "sweep": [six_digits(value) for value in entry.sweep],
        "measurement": entry.measurement.to_json(),
    }


def _entry(content: Any) -> Entry:
    return Entry(
        str(content["key"]),
        str(content["problem"]),
        [float(value) for value in content["fingerprint"]],
        [math.inf if value is None else float(value) for value in content["sweep"]],
        Measurement.from_json(content["measurement"]),
    )
