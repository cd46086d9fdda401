"""Array formats: names and shapes of θ in foreign files. They serve to recognise and check the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.rules import UpdateRule

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Theta: TypeAlias = Mapping[str, Tensor]


class ArrayFormat(NamedTuple):
    """Names and shapes of the arrays of a foreign format, and their conversion.

    Attributes:
        sizes: arguments of the rule that follow from shapes: (array, axis) by the name of the argument.
        shapes: function from these arguments, by name, to the shape of every array, including unused arrays.
        values: function from the arrays to the ``state_dict`` of the rule.
    """

    sizes: Mapping[str, tuple[str, int]]
    shapes: Callable[..., Shapes]
    values: Callable[[Theta], dict[str, Tensor]]

    def names(self) -> set[str]:
        """The names of all arrays."""
        return set(self.shapes(**dict.fromkeys(self.sizes, 1)))

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The arguments of the rule that follow from ``shapes``, by name.

        Raises:
            ValueError: if ``shapes`` do not have this format; the message names the difference.
        """
        missing, extra = sorted(self.names() - shapes.keys()), sorted(shapes.keys() - self.names())
        if missing or extra:
            lacks = f"it lacks {show(missing[0])}" if missing else f"it has {show(extra[0])}"
            count = len(missing) + len(extra)
            raise ValueError(lacks + (f" and differs in {count - 1} more names" if count > 1 else ""))
        sizes = {}
        for argument, (name, axis) in self.sizes.items():
            if len(shapes[name]) <= axis or shapes[name][axis] < 1:
                raise ValueError(f"{show(name)} has the shape {list(shapes[name])}")
            sizes[argument] = shapes[name][axis]
        for name, shape in self.shapes(**sizes).items():
            if shapes[name] != shape:
                raise ValueError(f"{show(name)} has the shape {list(shapes[name])} instead of {list(shape)}")
        return sizes


class Kind(NamedTuple):
    """A kind of foreign weights.

    Attributes:
        rule: class of the imported rule.
        format: array format of the weights.
        arguments: arguments of the rule, besides the sizes, that differ from the rule's defaults.
        on_request: whether this kind is used only if the user asks for it by name.
        note: text for the card: the difference between the rule and the original.
    """

    rule: type[UpdateRule]
    format: ArrayFormat
    arguments: Mapping[str, Any] = {}
    on_request: bool = False
    note: str = ""


def recognise(
    kinds: Mapping[str, Kind], shapes: Mapping[str, tuple[int, ...]], requested: str | None, label: str
) -> tuple[str, dict[str, int]]:
    """The kind of arrays with these shapes, and the arguments of the rule that follow from the shapes.

    Args:
        kinds: possible kinds by name.
        shapes: shapes of the arrays by name.
        requested: name of the kind that the user asks for; ``None`` for the only kind that fits.
        label: name of the file in messages.

    Raises:
        RuleFileError: if no kind fits, or several kinds fit.
    """
    if requested is not None and requested not in kinds:
        raise RuleFileError(
            f"{label} cannot contain the rule {show(requested)}; such files contain {', '.join(sorted(kinds))}."
        )
    fitting, differences = {}, {}
    for name, kind in kinds.items():
        if name == requested or (requested is None and not kind.on_request):
            try:
                fitting[name] = kind.format.read_sizes(shapes)
            except ValueError as error:
                differences[name] = str(error)
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        raise RuleFileError(f"{label} fits the rules {' and '.join(fitting)}; name one of them with --rule.")
    nearest = max(differences, key=lambda name: _overlap(kinds[name].format.names(), set(shapes)))
    scope = "" if requested is not None else " or any other rule that can be imported"
    raise RuleFileError(
        f"{label} does not contain the rule {nearest}{scope} ({differences[nearest]}); check the source of the file."
    )


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)
