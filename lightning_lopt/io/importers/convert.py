"""``lightning-lopt convert``: converts a rule from a foreign format, and writes a card that names the source."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lopt.command_line import CommandParser
from lightning_lopt.errors import RuleFileError
from lightning_lopt.io.card import Card
from lightning_lopt.io.files import parse_json_object
from lightning_lopt.io.importers.flax_theta import FLAX_KINDS
from lightning_lopt.io.importers.load import UNKNOWN_LICENCE, Imported, import_with_origin
from lightning_lopt.io.importers.pylo import PYLO_KINDS
from lightning_lopt.io.save import save_rule
from lightning_lopt.terminal import say


def convert_rule(
    *sources: str | os.PathLike[str],
    to: str | os.PathLike[str],
    rule: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Path:
    """Import a rule and write it with :func:`~lightning_lopt.save_rule`.

    Args:
        sources, rule, arguments: as in :func:`import_rule`.
        to: the folder to write; it must not be one of ``sources``.
        licence: SPDX identifier; the default is the licence in the cards of the sources. If these cards name no
            licence, the new card says "unknown".

    Returns:
        ``to`` as a path.

    Raises:
        RuleFileError: if the sources cannot be imported, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import load_rule
        >>> from safetensors.torch import save_file
        >>> layers = {"input": (32, 39), "linear_0": (32, 32), "output": (2, 32)}  # PyLO's names and shapes
        >>> tensors = {f"network.{name}.weight": torch.zeros(shape) for name, shape in layers.items()}
        >>> tensors |= {f"network.{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(tensors, f"{folder}/model.safetensors")
        ...     rule = load_rule(convert_rule(folder, to=f"{folder}/converted", rule="elo", licence="MIT"))
        >>> rule.rule_name, rule.trained
        ('adafac_mlp', True)
    """
    if any(os.path.realpath(source) == os.path.realpath(to) for source in sources):
        raise RuleFileError(f"{Path(to)} is the source of the conversion; choose another folder to write.")
    imported = import_with_origin(*sources, rule=rule, arguments=arguments)
    if licence is None:
        licences = {source.licence for source in imported.sources}
        licence = (licences.pop() if len(licences) == 1 else None) or UNKNOWN_LICENCE
    try:
        card = _card(imported, arguments or {}, licence)
    except ValueError as error:
        raise RuleFileError(f"{Path(to)} was not written: {error}") from None
    origin = [{"source": source.origin, "sha256": source.sha256} for source in imported.sources]
    return save_rule(imported.rule, to, card=card, meta_training={"imported_from": origin, "licence": licence})


def _card(imported: Imported, arguments: Mapping[str, Any], licence: str) -> Card:
    origins = [_plain(source.origin) for source in imported.sources]
    lines = [f"The weights were meta-trained in another project and imported as `{imported.kind}`:", ""]
    lines += [f"- `{origin}`, SHA-256 `{x.sha256}`" for origin, x in zip(origins, imported.sources, strict=True)]
    if licence == UNKNOWN_LICENCE:
        lines += ["", "The licence of these weights is unknown: ask their authors before you use or pass them on."]
    if imported.note:
        lines += ["", imported.note]
    options = ["--rule", imported.kind]
    for name, value in arguments.items():
        options += ["--set", f"{name}={json.dumps(value)}"]
    command = shlex.join(["lightning-lopt", "convert", *origins, "FOLDER", *options])
    return Card(
        title=f"Update rule {imported.rule.rule_name} from {' and '.join(origins)}",
        summary="\n".join(lines),
        recipe=f"```sh\n{command}\n```",
        limitations="The imported files contain no step sizes and no decays; `config.json` has the values used here.",
        licence=licence,
    )


def _plain(text: str) -> str:
    """A path or address without characters that would end a line of markdown or its backticks."""
    return "".join(x if x.isprintable() and x != "`" else "?" for x in text)


def convert_main(arguments: Sequence[str]) -> int:
    """Run the command ``convert``, and return the exit status."""
    kinds = sorted({*FLAX_KINDS, *PYLO_KINDS})
    parser = CommandParser(
        "convert",
        "Convert a rule of another project to the format of lightning_lopt: theta.state of Celo and Celo2, checkpoints "
        "of google/learned_optimization, safetensors of PyLO. Pickles are not opened.",
        example="lightning-lopt convert theta.state my_rule --rule celo2",
    )
    parser.add_argument("sources", nargs="+", metavar="SRC", help="file, folder or hf://owner/name@revision")
    parser.add_argument("folder", metavar="DST", help="folder to write")
    parser.add_argument("--rule", choices=kinds, help="kind of rule, if several kinds fit the weights")
    parser.add_argument("--licence", help="SPDX identifier, if the card of the source names no licence")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="an argument of the rule, for instance step_mult=0.01",
    )
    options = parser.parse_args(arguments)
    rule_arguments: dict[str, Any] = {}
    for text in options.set:
        name, sign, value = text.partition("=")
        if not sign:
            raise RuleFileError(f"--set {text!r} is not of the form NAME=JSON; write for instance step_mult=0.01.")
        rule_arguments |= parse_json_object(f"{{{json.dumps(name)}: {value}}}".encode(), f"--set {name}")
    folder = convert_rule(
        *options.sources, to=options.folder, rule=options.rule, arguments=rule_arguments, licence=options.licence
    )
    say(f"wrote {folder}; load it with load_rule({str(folder)!r})")
    return 0
