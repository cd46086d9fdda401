"""The measurement of an optimizer on a problem, which metrics read, and the JSON files that store measurements.

JSON files are written atomically, and checked as untrusted input when they are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_lopt.io.files import parse_json_object, show
from lightning_lopt.io.whole import write_whole

WINDOWS = 100  # number of windows of the training loss of one run, for any horizon
CHECKPOINTS = 20  # number of checkpoints of the validation loss of one run

# Limits of JSON files that are read.
LARGEST = 64 * 2**20  # bytes of a file
_MOST = 1000  # entries of an object or a list
_LONGEST = 20_000  # characters of a text

_Built = TypeVar("_Built")


def window_ends(horizon: int, windows: int = WINDOWS) -> list[int]:
    """Steps made at the end of each of ``min(windows, horizon)`` windows of nearly equal length.

    >>> window_ends(10, 4)
    [2, 5, 7, 10]
    """
    windows = min(windows, horizon)
    return [horizon * (window + 1) // windows for window in range(windows)]


@dataclass(frozen=True)
class Measurement:
    """The measurement of one optimizer on one problem.

    Axes: W windows of the run, V checkpoints of it, S seeds. Losses have the unit of the task; losses that are not
    finite are stored as they are. :func:`window_ends` gives the ends of windows and checkpoints.

    Attributes:
        optimizer: name of the optimizer in tables and files (``"base"``, ``"adamw"``).
        horizon: inner steps of the run.
        train: mean over each window of the mini-batch loss before the step, shape ``(W, S)``.
        valid: loss on the validation split at each checkpoint, shape ``(V, S)``; the last is after the last step.
        final_train: loss on the training split after the last step, shape ``(S,)``.
        learning_rate: the learning rate that tuning has chosen; ``None`` without tuning.
        metrics: further metrics of the validation split at each checkpoint (``"accuracy"``), shape ``(V, S)`` each.
    """

    optimizer: str
    horizon: int
    train: Tensor
    valid: Tensor
    final_train: Tensor
    learning_rate: float | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeds = len(self.final_train)
        needed_shapes = {
            "train": (len(window_ends(self.horizon)), seeds),
            "valid": (len(window_ends(self.horizon, CHECKPOINTS)), seeds),
            "final_train": (seeds,),
        }
        for name, shape in needed_shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}.")
        for name, values in self.metrics.items():
            if values.shape != self.valid.shape:
                raise ValueError(
                    f"metric {name!r} must have shape {tuple(self.valid.shape)}, got {tuple(values.shape)}."
                )

    @property
    def final_valid(self) -> Tensor:
        """Loss on the validation split after the last step, shape ``(S,)``."""
        return self.valid[-1]

    def to_json(self) -> dict[str, Any]:
        """JSON values, six significant digits each; values that are not finite become ``None``."""
        return {
            "optimizer": self.optimizer,
            "horizon": self.horizon,
            "learning_rate": self.learning_rate,
            "train": _to_json(self.train),
            "valid": _to_json(self.valid),
            "final_train": _to_json(self.final_train),
            "metrics": {name: _to_json(values) for name, values in self.metrics.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> Measurement:
        """The measurement from JSON values of :meth:`to_json`; ``None`` becomes NaN.

        Raises:
            ValueError: if anything is missing, of another type or of another shape.
        """
        try:
            rate = content["learning_rate"]
            return cls(
                str(content["optimizer"]),
                _count(content["horizon"]),
                _from_json(content["train"]),
                _from_json(content["valid"]),
                _from_json(content["final_train"]),
                None if rate is None else float(rate),
                {str(name): _from_json(values) for name, values in content["metrics"].items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"this is no measurement: {reason}.") from None


def in_windows(values: Tensor, windows: int = WINDOWS) -> Tensor:
    """Means over the windows of a run: shape ``(T, ...)`` to ``(W, ...)``."""
    ends = window_ends(len(values), windows)
    return torch.stack([values[begin:end].mean(0) for begin, end in zip([0, *ends[:-1]], ends, strict=True)])


def six_digits(value: float) -> float | None:
    """A number as files store it: six significant digits, ``None`` if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _to_json(values: Tensor) -> list[Any]:
    if values.dim() > 1:
        return [_to_json(row) for row in values]
    return [six_digits(value) for value in values.tolist()]


def _from_json(values: Sequence[Any]) -> Tensor:
    if values and isinstance(values[0], list):
        return torch.stack([_from_json(row) for row in values])
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 10**9:
        raise ValueError(f"horizon must be a whole number of at least 1, got {value!r}")
    return value


class MeasurementStore:
    """Measurements and costs in a folder, one file each, named by a hash of everything that its content depends on.

    A damaged file counts as missing. Files are written atomically.

    Args:
        folder: the folder; ``None`` stores nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def measurement(self, key: str) -> Measurement | None:
        """The stored measurement with this key; ``None`` if there is none."""
        return self._read(key, Measurement.from_json)

    def keep_measurement(self, key: str, measurement: Measurement) -> None:
        """Store a measurement."""
        self._write(key, measurement.to_json())

    def costs(self, key: str) -> tuple[float, dict[str, float]] | None:
        """The stored seconds of the gradient and of the steps with this key; ``None`` if there are none."""
        return self._read(key, _costs)

    def keep_costs(self, key: str, costs: tuple[float, dict[str, float]]) -> None:
        """Store seconds of the gradient and of the steps."""
        self._write(key, {"gradient": costs[0], "steps": costs[1]})

    def _read(self, key: str, build: Callable[[Any], _Built]) -> _Built | None:
        if self.folder is None:
            return None
        try:
            return read_json(self.folder / f"{key}.json", build)
        except ValueError:
            return None

    def _write(self, key: str, content: dict[str, Any]) -> None:
        if self.folder is not None:
            write_json(self.folder / f"{key}.json", content)


def _costs(content: Any) -> tuple[float, dict[str, float]]:
    entry = as_object(content, "the file")
    steps = as_object(entry.get("steps"), "steps")
    return as_positive(entry.get("gradient"), "gradient"), {key: as_positive(steps[key], key) for key in steps}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` atomically; the folder is made."""
    write_whole(path, json.dumps(content, allow_nan=False) + "\n")


def read_json(path: Path, build: Callable[[Any], _Built]) -> _Built:
    """The result of ``build`` for the object in a JSON file of bounded size.

    Raises:
        ValueError: if there is no such object, or ``build`` refuses it; the message names the file.
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
        raise ValueError(f"{path} holds no results that can be read ({reason}); make them again.") from None


def as_object(value: Any, what: str) -> dict[str, Any]:
    """``value``, if it is an object of bounded size."""
    if not isinstance(value, dict) or len(value) > _MOST:
        raise ValueError(f"{what} must be an object of at most {_MOST} entries, got {show(value)}")
    return value


def as_list(value: Any, what: str) -> Sequence[Any]:
    """``value``, if it is a list of bounded length."""
    if not isinstance(value, list) or len(value) > _MOST:
        raise ValueError(f"{what} must be a list of at most {_MOST} entries, got {show(value)}")
    return value


def as_name(value: Any) -> str:
    """``value``, if it is a text of bounded length."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError(f"a text of at most {_LONGEST} characters is missing, got {show(value)}")
    return value


def text_of(entry: dict[str, Any], key: str) -> str:
    """The text of bounded length under ``key``."""
    if not isinstance(entry.get(key), str) or len(entry[key]) > _LONGEST:
        raise ValueError(f"{key} must be a text of at most {_LONGEST} characters, got {show(entry.get(key))}")
    return str(entry[key])


def whole_of(entry: dict[str, Any], key: str) -> int:
    """The whole number in [0, 2^63) under ``key``."""
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{key} must be a whole number >= 0, got {show(value)}")
    return value


def as_positive(value: Any, what: str) -> float:
    """``value``, if it is a positive number."""
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be a positive number, got {show(value)}")
    return float(value)
