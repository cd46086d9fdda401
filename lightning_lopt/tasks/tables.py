"""Tables of numbers with a class or values to predict, from arrays or from scikit-learn."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_lopt.extras import how_to_install
from lightning_lopt.tasks._draw import split_indices

CLASS_TABLES = ("breast_cancer", "wine", "iris")
VALUE_TABLES = ("diabetes",)
"""Tables of scikit-learn: targets are classes in ``CLASS_TABLES``, values in ``VALUE_TABLES``."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with a class or values to predict; :meth:`from_arrays` checks them.

    Attributes:
        inputs: float32, shape ``(N, D)``, finite.
        targets: classes, int64 of shape ``(N,)`` in ``[0, classes)``, or values, float32 of shape ``(N, K)``, finite.
        classes: number of classes, >= 2; 0 if the targets are values.
        name: short, for task names and messages.

    Example:
        >>> inputs, classes = [[1.0, 2.0], [3.0, 4.0], [5.0, 7.0], [0.0, 1.0]], [0, 1, 1, 0]
        >>> table = Table.from_arrays(inputs, classes, "mine")
        >>> train, valid = table.split(0.25, torch.Generator().manual_seed(0), max_valid=None)
        >>> len(train), len(valid), table.classes
        (3, 1, 2)
    """

    inputs: Tensor
    targets: Tensor
    classes: int
    name: str

    @classmethod
    def from_arrays(cls, x: Any, y: Any, name: str = "table") -> Table:
        """A table from anything ``numpy.asarray`` reads.

        Args:
            x: numbers, shape ``(N, D)``.
            y: integers from 0, shape ``(N,)``, are classes; floating point, ``(N,)`` or ``(N, K)``, are values.
            name: for task names and messages.

        Raises:
            ValueError: if the arrays have other types, shapes or values.
        """
        rows, target_array = np.asarray(x), np.asarray(y)
        if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind not in "fiu":
            raise ValueError(f"{name}: inputs are {rows.dtype} of shape {rows.shape}; give numbers of shape (N, D).")
        if (
            target_array.dtype.kind not in "fiu"
            or target_array.ndim not in (1, 2)
            or (target_array.ndim == 2 and target_array.dtype.kind != "f")
        ):
            raise ValueError(
                f"{name}: targets are {target_array.dtype} of shape {target_array.shape}; give integer classes of "
                "shape (N,), or floating point values of shape (N,) or (N, K)."
            )
        if len(rows) != len(target_array):
            raise ValueError(f"{name}: {len(rows)} rows but {len(target_array)} targets; every row needs one target.")
        inputs = torch.tensor(rows, dtype=torch.float32)
        if target_array.dtype.kind == "f":
            targets, classes = torch.tensor(target_array, dtype=torch.float32).reshape(len(target_array), -1), 0
        else:
            targets, classes = torch.tensor(target_array.astype(np.int64)), int(target_array.max()) + 1
            if int(targets.min()) < 0 or classes < 2:
                low = int(targets.min())
                raise ValueError(f"{name}: classes run from {low} to {classes - 1}; number two or more classes from 0.")
        if not (bool(inputs.isfinite().all()) and bool(targets.isfinite().all())):
            raise ValueError(f"{name}: the table holds NaN or infinite values; clean it first.")
        return cls(inputs, targets, classes, name)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def outputs(self) -> int:
        """Number of outputs of a network: logits of the classes, or values."""
        return self.classes or self.targets.shape[1]

    def take(self, indices: Tensor) -> Table:
        """The rows with these indices, shape ``(M,)``, in this order."""
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def cut(self, valid: int) -> tuple[Table, Table]:
        """Disjoint parts (train, valid) of a table with rows in random order: the first ``valid`` rows are held out."""
        rows = torch.arange(len(self))
        return self.take(rows[valid:]), self.take(rows[:valid])

    def split(self, valid_fraction: float, generator: torch.Generator, max_valid: int | None) -> tuple[Table, Table]:
        """Disjoint random parts (train, valid), both standardised by the mean and deviation of the training part.

        Inputs are always standardised, targets only if they are values; a constant column becomes 0.

        Raises:
            ValueError: if the fraction is outside (0, 1), ``max_valid`` below 1, or there is only one row.
        """
        train, valid = map(self.take, split_indices(len(self), valid_fraction, generator, max_valid, self.name))
        standardised_parts = []
        for part in (train, valid):
            targets = part.targets if self.classes else _standardised(part.targets, train.targets)
            standardised_parts.append(replace(part, inputs=_standardised(part.inputs, train.inputs), targets=targets))
        return standardised_parts[0], standardised_parts[1]


TableLike: TypeAlias = "Table | str | Sequence[Table | str]"


def _standardised(x: Tensor, reference: Tensor) -> Tensor:
    deviation = reference.std(0, correction=0)
    return (x - reference.mean(0)) / torch.where(deviation > 1e-6 * reference.abs().amax(0) + 1e-30, deviation, 1.0)


def load_table(name: str) -> Table:
    """A table from scikit-learn: one of :data:`CLASS_TABLES` or :data:`VALUE_TABLES`.

    Raises:
        ValueError: if ``name`` is none of these tables.
        ImportError: if scikit-learn is not installed.

    Example:
        >>> wine = load_table("wine")
        >>> tuple(wine.inputs.shape), wine.classes
        ((178, 13), 3)
    """
    if name not in CLASS_TABLES + VALUE_TABLES:
        names = ", ".join(map(repr, CLASS_TABLES + VALUE_TABLES))
        raise ValueError(f"there is no table {name!r}; use one of {names}, 'synthetic', or Table.from_arrays.")
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            f"the table {name!r} comes with scikit-learn, which is not installed; "
            f"{how_to_install('examples')}, or use 'synthetic' tables."
        )
    sklearn_table = getattr(importlib.import_module("sklearn.datasets"), f"load_{name}")()
    return Table.from_arrays(sklearn_table.data, sklearn_table.target, name)


def resolve_tables(data: TableLike | None, embedded: Sequence[str]) -> list[Table | str]:
    """A list of tables; an entry ``"synthetic"`` means that each task draws a new table.

    Args:
        data: one or several tables, names of tables, or ``"synthetic"``; ``None`` means ``"synthetic"`` and, if
            scikit-learn is installed, all of ``embedded``.
        embedded: names of tables.

    Raises:
        ValueError: if the list is empty or a name unknown.
        ImportError: if a table is named and scikit-learn is not installed.
    """
    if data is None:
        installed = importlib.util.find_spec("sklearn") is not None
        data = ["synthetic", *(embedded if installed else ())]
    entries = [data] if isinstance(data, (Table, str)) else list(data)
    if not entries:
        raise ValueError("data is an empty list; give tables or their names, or None for the default tables.")
    return [entry if isinstance(entry, Table) or entry == "synthetic" else load_table(entry) for entry in entries]
