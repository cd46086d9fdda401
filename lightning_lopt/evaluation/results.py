"""Everything a report shows can be computed from these results; they are written as ``results.json`` and read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics import Contest, final_loss, log_ratio
from lightning_lopt.io.files import parse_json_object, show

FORMAT = "lightning_lopt_results"
FORMAT_VERSION = 1
LARGEST = 64 * 2**20  # bytes that are read
_MOST = 1000  # problems, and optimizers
_LONGEST = 20_000  # characters of a text


@dataclass(frozen=True)
class ProblemResult:
    """What optimizers did on one problem.

    Attributes:
        name: unique among the results.
        horizon: inner steps of every run.
        loss_scale: loss of a model that knows nothing.
        measurements: by optimizer; all have the same seeds.
        family: task family it could be drawn from, empty where there is none.
        data: name of its data, empty where it has none.
        parameters: of the model.
        gradient_seconds: what forward and backward of one mini-batch take; ``None`` where not measured.
        step_seconds: what one step of an optimizer takes, as it is deployed, where measured.
    """

    name: str
    horizon: int
    loss_scale: float
    measurements: dict[str, Measurement]
    family: str = ""
    data: str = ""
    parameters: int = 0
    gradient_seconds: float | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)

    def log_ratio(self, name: str, reference: str, split: str = "train") -> float:
        r"""Median over seeds of :func:`~lightning_lopt.evaluation.metrics.log_ratio` of the final losses on a split.

        Below 0 where ``name`` ends below ``reference``; of an even number of seeds the lower of the middle two.
        """
        ours, other = (final_loss(self.measurements[which], split) for which in (name, reference))
        return float(log_ratio(ours, other, self.loss_scale).median())

    def contest(self, name: str, reference: str) -> Contest:
        """``name`` beside ``reference``, for metrics."""
        cost = math.nan
        if self.gradient_seconds is not None and {name, reference} <= set(self.step_seconds):
            ours, other = (self.gradient_seconds + self.step_seconds[which] for which in (name, reference))
            cost = other / ours
        return Contest(self.name, self.loss_scale, self.measurements[name], self.measurements[reference], cost)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "horizon": self.horizon,
            "loss_scale": self.loss_scale,
            "family": self.family,
            "data": self.data,
            "parameters": self.parameters,
            "gradient_seconds": self.gradient_seconds,
            "step_seconds": self.step_seconds,
            "measurements": {name: run.to_json() for name, run in self.measurements.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> ProblemResult:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        entry = _object(content, "a problem")
        name = _text(entry, "name")
        runs = _object(entry.get("measurements"), f"the measurements of {show(name)}")
        measurements = {_short(key): Measurement.from_json(value) for key, value in runs.items()}
        for key, run in measurements.items():
            if run.horizon != entry.get("horizon"):
                raise ValueError(f"{show(name)} has the horizon {show(entry.get('horizon'))}, {show(key)} {run.horizon}")
        seconds = _object(entry.get("step_seconds"), f"the step_seconds of {show(name)}")
        gradient = entry.get("gradient_seconds")
        return cls(
            name,
            _whole(entry, "horizon"),
            _positive(entry.get("loss_scale"), f"the loss_scale of {show(name)}"),
            measurements,
            _text(entry, "family"),
            _text(entry, "data"),
            _whole(entry, "parameters"),
            None if gradient is None else _positive(gradient, f"the gradient_seconds of {show(name)}"),
            {_short(key): _positive(value, f"the step_seconds of {show(key)}") for key, value in seconds.items()},
        )


@dataclass(frozen=True)
class RuleRecord:
    """Which rule was measured.

    Attributes:
        rule: its name in the registry (``"residual"``).
        config: arguments that build it.
        weights_sha256: of its weights.
        meta_parameters: how many numbers θ has.
        trained_on: what it was meta-trained on: lists of names ``families`` and ``data``, and ``horizons``, the
            shortest and the longest; empty where the rule does not say.
        source: name or folder it was loaded from, empty for a rule in memory.
    """

    rule: str
    config: dict[str, Any]
    weights_sha256: str
    meta_parameters: int
    trained_on: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def from_json(cls, content: Any) -> RuleRecord:
        """From the attributes as JSON.

        Raises:
            ValueError: if it is anything else.
        """
        entry = _object(content, "a rule")
        return cls(
            _text(entry, "rule"),
            _object(entry.get("config"), "the config of a rule"),
            _text(entry, "weights_sha256"),
            _whole(entry, "meta_parameters"),
            checked_training(entry.get("trained_on")),
            _text(entry, "source"),
        )


@dataclass(frozen=True)
class Results:
    """Rules, and what they are compared with, on a list of problems.

    Attributes:
        rules: those under test, by name.
        against: names of the baselines.
        problems: what was measured; each holds a measurement of every rule and baseline.
        suite: name of the suite, empty for problems of the caller's own.
        seed: of initial models and mini-batches.
        environment: machine and versions, by name.
        command: the command line that makes these results.
    """

    rules: dict[str, RuleRecord]
    against: tuple[str, ...]
    problems: tuple[ProblemResult, ...]
    suite: str = ""
    seed: int = 0
    environment: dict[str, str | int] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        if not self.problems or not self.rules:
            raise ValueError("results need at least one rule and one problem")
        wanted = {*self.rules, *self.against}
        if len(wanted) != len(self.rules) + len(self.against):
            raise ValueError(f"a rule is called like a baseline: {', '.join(map(show, sorted(wanted)))}")
        if len({problem.name for problem in self.problems}) != len(self.problems):
            raise ValueError("two problems have the same name")
        for problem in self.problems:
            if missing := sorted(wanted - set(problem.measurements)):
                raise ValueError(f"{show(problem.name)} has no measurement of {', '.join(map(show, missing))}")
        if len({len(run.final_train) for problem in self.problems for run in problem.measurements.values()}) != 1:
            raise ValueError("the measurements differ in their number of seeds")

    @property
    def seeds(self) -> int:
        """Models that each optimizer trained on each problem."""
        return len(next(iter(self.problems[0].measurements.values())).final_train)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "command": self.command,
            "suite": self.suite,
            "seed": self.seed,
            "rules": {name: vars(record) for name, record in self.rules.items()},
            "against": list(self.against),
            "environment": self.environment,
            "problems": [problem.to_json() for problem in self.problems],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read what :meth:`save` wrote. The file is treated as hostile: bounded, and data alone.

        Raises:
            ValueError: if it is anything else.
        """
        return read_json(Path(path), cls.from_json)

    @classmethod
    def from_json(cls, content: Any) -> Results:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        entry = _object(content, "the file")
        if entry.get("format") != FORMAT or entry.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"the format is {show(entry.get('format'))}, version {show(entry.get('format_version'))}, instead of "
                f"{FORMAT!r}, version {FORMAT_VERSION}"
            )
        environment = _object(entry.get("environment"), "the environment")
        return cls(
            {_short(key): RuleRecord.from_json(value) for key, value in _object(entry.get("rules"), "rules").items()},
            tuple(_short(name) for name in _list(entry.get("against"), "against")),
            tuple(ProblemResult.from_json(value) for value in _list(entry.get("problems"), "problems")),
            _text(entry, "suite"),
            _whole(entry, "seed"),
            {_short(key): value if type(value) is int else _short(value) for key, value in environment.items()},
            _text(entry, "command"),
        )


def checked_training(content: Any) -> dict[str, Any]:
    """``families``, ``data`` and ``horizons`` of what a rule says of its meta-training, as far as they are there.

    Raises:
        ValueError: if one of them is there and not what it should be.
    """
    entry = {} if content is None else _object(content, "trained_on")
    found: dict[str, Any] = {}
    for key in ("families", "data"):
        if key in entry:
            found[key] = [_short(name) for name in _list(entry[key], key)]
    if "horizons" in entry:
        horizons = _list(entry["horizons"], "horizons")
        if len(horizons) != 2 or not all(type(value) is int and value > 0 for value in horizons):
            raise ValueError(f"horizons must be the shortest and the longest number of steps, got {show(horizons)}")
        found["horizons"] = horizons
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_json(path: Path, build: Any) -> Any:
    """``build`` of the object in a JSON file of bounded size.

    Raises:
        ValueError: if there is none, or ``build`` refuses it; the message names the file.
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


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MOST:
        raise ValueError(f"{what} must be an object of at most {_MOST} entries, got {show(value)}")
    return value


def _list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > _MOST:
        raise ValueError(f"{what} must be a list of at most {_MOST} entries, got {show(value)}")
    return value


def _short(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError(f"a text of at most {_LONGEST} characters is missing, got {show(value)}")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    if not isinstance(entry.get(key), str) or len(entry[key]) > _LONGEST:
        raise ValueError(f"{key} must be a text of at most {_LONGEST} characters, got {show(entry.get(key))}")
    return str(entry[key])


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{key} must be a whole number >= 0, got {show(value)}")
    return value


def _positive(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be a positive number, got {show(value)}")
    return float(value)
