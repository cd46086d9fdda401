"""Array formats: how others keep the θ of a rule, by which their files are recognised and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from lightning_lopt.io.files import RuleFileError, show
from lightning_lopt.rules import UpdateRule

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Theta: TypeAlias = Mapping[str, Tensor]


class ArrayFormat(NamedTuple):
    """Names and shapes of somebody's arrays, and ours made of them.

    Attributes:
        sizes: arguments of our rule that can be read off the arrays: name of the argument to (array, axis).
        shapes: from these arguments, by name, to the shape of every array, those that nothing reads among them.
        values: from the arrays to the ``state_dict`` of our rule.
    """

    sizes: Mapping[str, tuple[str, int]]
    shapes: Callable[..., Shapes]
    values: Callable[[Theta], dict[str, Tensor]]

    def names(self) -> set[str]:
        """The names of all arrays."""
        return set(self.shapes(**dict.fromkeys(self.sizes, 1)))

    def read_sizes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The arguments that arrays of the shapes ``found`` are for.

        Raises:
            ValueError: with the difference, if they do not have this format.
        """
        missing, extra = sorted(self.names() - found.keys()), sorted(found.keys() - self.names())
        if missing or extra:
            lacks = f"it lacks {show(missing[0])}" if missing else f"it has {show(extra[0])}"
            count = len(missing) + len(extra)
            raise ValueError(lacks + (f" and differs in {count - 1} more names" if count > 1 else ""))
        sizes = {}
        for argument, (name, axis) in self.sizes.items():
            if len(found[name]) <= axis or found[name][axis] < 1:
                raise ValueError(f"{show(name)} has the shape {list(found[name])}")
            sizes[argument] = found[name][axis]
        for name, shape in self.shapes(**sizes).items():
            if found[name] != shape:
                raise ValueError(f"{show(name)} has the shape {list(found[name])} instead of {list(shape)}")
        return sizes


class Kind(NamedTuple):
    """What weights may be.

    Attributes:
        rule: the class that they become.
        format: how they are kept.
        arguments: those of the rule, beside the sizes, that differ from its defaults.
        asked: whether weights are taken for this kind only where it is asked for.
        note: for the card: how the rule differs from where the weights come from.
    """

    rule: type[UpdateRule]
    format: ArrayFormat
    arguments: Mapping[str, Any] = {}
    asked: bool = False
    note: str = ""


def recognise(
    kinds: Mapping[str, Kind], found: Mapping[str, tuple[int, ...]], wanted: str | None, label: str
) -> tuple[str, dict[str, int]]:
    """Which of ``kinds`` arrays of the shapes ``found`` are, and the arguments read off them.

    Args:
        kinds: by name.
        found: shapes by name.
        wanted: the only kind to take them for; ``None`` for the one that fits.
        label: what messages call the arrays' file.

    Raises:
        RuleFileError: if none fits, or several do.
    """
    if wanted is not None and wanted not in kinds:
        raise RuleFileError(f"{label} cannot hold the rule {show(wanted)}; such files hold {', '.join(sorted(kinds))}.")
    fitting, wrong = {}, {}
    for name, kind in kinds.items():
        if name == wanted or (wanted is None and not kind.asked):
            try:
                fitting[name] = kind.format.read_sizes(found)
            except ValueError as error:
                wrong[name] = str(error)
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        raise RuleFileError(f"{label} fits the rules {' and '.join(fitting)} alike; say which it is with --rule.")
    nearest = max(wrong, key=lambda name: _overlap(kinds[name].format.names(), set(found)))
    only = "" if wanted is not None else " or any other that can be imported"
    raise RuleFileError(f"{label} does not hold the rule {nearest}{only} ({wrong[nearest]}); check where it is from.")


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)
