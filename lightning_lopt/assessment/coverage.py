"""Comparison of the user's plan with the record of meta-training in the rule's config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_lopt.io import load_meta_training
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Layers
from lightning_lopt.tasks.mixtures import families_with

FAR = 2.0  # factor beyond the longest horizon or the largest batch that counts as a gap
FAR_LARGER = 10.0  # the same for the number of parameters

_CLASSES: dict[Layers, tuple[type[nn.Module], ...]] = {
    "convolutions": (nn.modules.conv._ConvNd,),
    "recurrent layers": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    "embeddings": (nn.Embedding, nn.EmbeddingBag),
}
_LAYERS = {kind: (classes, families_with(kind)) for kind, classes in _CLASSES.items()}
"""Kinds of layers: the classes of their layers, and the task families that contain them."""


def meta_training_of(rule: str | os.PathLike[str] | UpdateRule) -> dict[str, Any]:
    """The entry ``meta_training`` of ``config.json``; empty for a rule in memory, which has no such file.

    Raises:
        RuleFileError: if the file is missing or damaged.
    """
    return {} if isinstance(rule, UpdateRule) else load_meta_training(rule)


def gaps(
    module: nn.Module,
    meta_training: Mapping[str, Any],
    *,
    total_steps: int,
    batch_size: int | None,
    parameters: int,
) -> list[str]:
    """One sentence for each property of the plan that meta-training did not cover.

    Args:
        meta_training: may contain ``"horizons"`` and ``"batch_sizes"`` (pairs, shortest and longest),
            ``"largest_parameters"`` and ``"families"`` (names); missing entries, and entries of another form, are
            ignored.
    """
    sentences = []
    horizons = _pair(meta_training.get("horizons"))
    if horizons and total_steps > FAR * horizons[1]:
        sentences.append(f"{total_steps} steps are planned, meta-training went up to {horizons[1]:g}")
    sizes = _pair(meta_training.get("batch_sizes"))
    if sizes and batch_size is not None and not sizes[0] / FAR <= batch_size <= sizes[1] * FAR:
        sentences.append(f"batches of {batch_size}, meta-training had {sizes[0]:g} to {sizes[1]:g}")
    largest = meta_training.get("largest_parameters")
    if isinstance(largest, int | float) and _number(largest) and parameters > FAR_LARGER * largest:
        sentences.append(f"{parameters:,} parameters, the largest model it was measured on had {largest:,}")
    families = meta_training.get("families")
    if isinstance(families, list) and all(isinstance(name, str) for name in families):
        children = list(module.modules())
        for kind, (classes, having) in _LAYERS.items():
            if any(isinstance(child, classes) for child in children) and not having & set(families):
                sentences.append(f"{kind}, which no task of meta-training had")
    return sentences


def unrecorded(meta_training: Mapping[str, Any]) -> list[str]:
    """The entries that are missing in the record of meta-training."""
    named = {"horizons": "horizons", "batch_sizes": "batch sizes", "largest_parameters": "sizes", "families": "tasks"}
    return [words for key, words in named.items() if key not in meta_training]


def _number(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2 and all(map(_number, value)):
        return float(value[0]), float(value[1])
    return None
