"""Import of a rule from files in a foreign format."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.io.files import CARD, CONFIG, WEIGHTS, RuleFile, decode_text, read_file
from lightning_lopt.io.header import read_header
from lightning_lopt.io.importers.array_format import Kind, recognise
from lightning_lopt.io.importers.flax_theta import FLAX_KINDS, read_theta, tensor_of
from lightning_lopt.io.importers.pylo import PYLO_KINDS, check_config
from lightning_lopt.io.sources import find_foreign
from lightning_lopt.rules import UpdateRule
from lightning_lopt.rules.contract.build import TensorSpec, build_rule, check_arguments

# The reference implementation sets these arguments for checkpoints without a config.
OLDEST_VELO = {"forgets": True, "short_loss_horizon": True}

SPDX = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0")
UNKNOWN_LICENCE = "LicenseRef-unknown"


class Source(NamedTuple):
    """A file with θ: its source, its SHA-256, and the licence in the card of its folder (``None`` without a card)."""

    origin: str
    sha256: str
    licence: str | None


class Imported(NamedTuple):
    """An imported rule, its kind, its files, and a note about differences from the original."""

    rule: UpdateRule
    kind: str
    sources: tuple[Source, ...]
    note: str


def import_rule(
    *sources: str | os.PathLike[str], rule: str | None = None, arguments: Mapping[str, Any] | None = None
) -> UpdateRule:
    """The rule in a foreign format at ``sources``; see :func:`import_with_origin`.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> layers = {"input": (32, 39), "linear_0": (32, 32), "output": (2, 32)}  # PyLO's names and shapes
        >>> tensors = {f"network.{name}.weight": torch.zeros(shape) for name, shape in layers.items()}
        >>> tensors |= {f"network.{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(tensors, f"{folder}/model.safetensors")
        ...     rule = import_rule(folder, rule="elo")
        >>> rule.rule_name, rule.hidden
        ('adafac_mlp', 32)
    """
    return import_with_origin(*sources, rule=rule, arguments=arguments).rule


def import_with_origin(
    *sources: str | os.PathLike[str], rule: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Imported:
    """Import a rule with exactly the θ of its files, and with a record of its source.

    The formats are ``theta.state`` of Celo and Celo2, the parameter checkpoints of google/learned_optimization (flax,
    msgpack), and folders of PyLO (safetensors). Pickles are refused. A file may lack step sizes, decays and other
    constants. ``arguments`` sets them; the defaults are the values in the original code.

    Args:
        sources: a file, a folder, or ``hf://owner/name[@revision]``; two folders for PyLO's VeLO.
        rule: kind of the weights, one of ``FLAX_KINDS`` or ``PYLO_KINDS``; needed only if several kinds fit.
        arguments: arguments of the rule's class, JSON values.

    Raises:
        RuleFileError: if a file is missing, damaged or a pickle, if no rule or several rules fit, or if the arguments
            do not fit.
    """
    if not sources:
        raise RuleFileError("there is nothing to import; give a file, a folder or an address hf://owner/name.")
    shapes: dict[str, tuple[int, ...]] = {}
    pieces: list[_Piece] = []
    for source in sources:
        piece = _read(source)
        if pieces and (piece.kinds is not PYLO_KINDS or pieces[0].kinds is not PYLO_KINDS):
            raise RuleFileError(f"{piece.label} cannot be joined with {pieces[0].label}; import one file at a time.")
        duplicates = sorted(shapes.keys() & piece.shapes.keys())
        if duplicates:
            raise RuleFileError(
                f"{piece.label} and {pieces[0].label} both have {show(duplicates[0])}; give different folders."
            )
        shapes |= piece.shapes
        pieces.append(piece)
    label, kinds = " and ".join(piece.label for piece in pieces), pieces[0].kinds
    name, sizes = recognise(kinds, shapes, rule, label)
    kind = kinds[name]
    defaults = dict(kind.arguments) | (OLDEST_VELO if pieces[0].oldest and name == "velo" else {})
    user_arguments = check_arguments(kind.rule, dict(arguments or {}), "arguments")
    for argument, size in sizes.items():
        if user_arguments.get(argument, size) != size:
            raise RuleFileError(
                f"arguments give {argument}={show(user_arguments[argument])}, but {label} has {size}; leave it out."
            )
    theta = {path: tensor for piece in pieces for path, tensor in piece.tensors().items()}
    for path, tensor in theta.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise RuleFileError(f"{label} has values in {show(path)} that are not finite numbers; take other weights.")
    values = {path: tensor.contiguous() for path, tensor in kind.format.values(theta).items()}
    specs = {path: TensorSpec(tensor.dtype, tuple(tensor.shape)) for path, tensor in values.items()}
    imported_rule = build_rule(kind.rule, defaults | user_arguments | sizes, specs, "the arguments", label)
    imported_rule.load_state_dict(values)
    notes = [kind.note] if kind.note else []
    if pieces[0].oldest and name == "velo":
        notes.append("The reference sets forgets and short_loss_horizon for checkpoints without a config.")
    return Imported(imported_rule, name, tuple(piece.source for piece in pieces), " ".join(notes))


class _Piece(NamedTuple):
    """One file, after the checks that need no memory for its tensors."""

    label: str
    kinds: Mapping[str, Kind]
    shapes: dict[str, tuple[int, ...]]
    data: Any  # arrays by path, or the bytes of a safetensors file
    oldest: bool
    source: Source

    def tensors(self) -> dict[str, Tensor]:
        if self.kinds is FLAX_KINDS:
            return {path: tensor_of(array) for path, array in self.data.items()}
        return dict(load_tensors(self.data))


def _read(source: str | os.PathLike[str]) -> _Piece:
    files, origin = find_foreign(source)
    file = next(iter(files.values()))
    if file.name == WEIGHTS and CONFIG in files:
        check_config(read_file(files[CONFIG]), files[CONFIG].label)
    data = read_file(file)
    source_file = Source(origin, hashlib.sha256(data).hexdigest(), _licence(files.get(CARD)))
    if file.name == WEIGHTS:
        shapes = {path: spec.shape for path, spec in read_header(data, file.label).items()}
        return _Piece(file.label, PYLO_KINDS, shapes, data, False, source_file)
    arrays, oldest = read_theta(data, file.label)
    return _Piece(file.label, FLAX_KINDS, {x: array.shape for x, array in arrays.items()}, arrays, oldest, source_file)


def _licence(card: RuleFile | None) -> str | None:
    """The licence in the front matter of a card, as an SPDX identifier; ``None`` if the card names no licence."""
    if card is None:
        return None
    front = re.match(r"\s*---\r?\n(.*?\n)---", decode_text(read_file(card), card.label), re.DOTALL)
    line = (
        re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+-]*)[\"']?[ \t]*\r?$", front[1], re.M)
        if front
        else None
    )
    if line is None or line[1].lower() in ("other", "unknown"):
        return None
    return next((name for name in SPDX if name.lower() == line[1].lower()), line[1])
