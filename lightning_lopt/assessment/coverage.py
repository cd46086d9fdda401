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

FAR = 2.0  # a horizon or batch size beyond the range of meta-training by more than this factor is a gap
FAR_LARGER = 10.0  # a number of parameters above the largest measured model by more than this factor is a gap

_CLASSES: dict[Layers, tuple[type[nn.Module], ...]] = {
    "convolutions": (nn.modules.conv._ConvNd,),
    "recurrent layers": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    "embeddings": (nn.Embedding, nn.EmbeddingBag),
}
_LAYERS = {kind: (classes, families_with(kind)) for kind, classes in _CLASSES.items()}
"""By kind of layer: classes of such layers, and task families whose models have such layers."""


def meta_training_of(rule: str | os.PathLike[str] | UpdateRule) -> dict[str, Any]:
    """The entry ``meta_training`` of ``config.json``; empty for a rule in memory, because it has no such file.

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
        meta_training: may contain ``"horizons"`` and ``"batch_sizes"`` (pairs of the least and the largest value),
            ``"largest_parameters"`` and ``"families"`` (names); missing entries, and entries of another form, are
            ignored.
    """
    sentences = []
    horizons = _pair(meta_training.get("horizons"))
    if horizons and total_steps > FAR * horizons[1]:
        sentences.append(f"{total_steps} steps are planned, but meta-training had at most {horizons[1]:g} steps")
    sizes = _pair(meta_training.get("batch_sizes"))
    if sizes and batch_size is not None and not sizes[0] / FAR <= batch_size <= sizes[1] * FAR:
        sentences.append(f"batches have {batch_size} examples, but meta-training had {sizes[0]:g} to {sizes[1]:g}")
    largest = meta_training.get("largest_parameters")
    if isinstance(largest, int | float) and _number(largest) and parameters > FAR_LARGER * largest:
        sentences.append(f"the module has {parameters:,} parameters, but the largest measured model had {largest:,}")
    families = meta_training.get("families")
    if isinstance(families, list) and all(isinstance(name, str) for name in families):
        children = list(module.modules())
        for kind, (classes, families_of_kind) in _LAYERS.items():
            if any(isinstance(child, classes) for child in children) and not families_of_kind & set(families):
                sentences.append(f"the module has {kind}, but no task of meta-training had them")
    return sentences


def unrecorded(meta_training: Mapping[str, Any]) -> list[str]:
    """Words for the entries that are missing in the record of meta-training."""
    words = {"horizons": "horizons", "batch_sizes": "batch sizes", "largest_parameters": "sizes", "families": "tasks"}
    return [word for key, word in words.items() if key not in meta_training]


def _number(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2 and all(map(_number, value)):
        return float(value[0]), float(value[1])
    return None
