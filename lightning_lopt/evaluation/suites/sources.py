"""Data of several suites: halves of labelled images, and an excerpt of text."""

from __future__ import annotations

import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.text import resolve_texts

VOCABULARY = 64
MAX_SIDE = 16
"""Suites for the CPU shrink images with a longer side than this many pixels."""


def halves(data: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """The standardised images in two disjoint parts: for training, and at most 1000 for validation."""
    return data.standardised().split(0.2, generator(0, "split"), max_valid=1000)


def small_images(data: LabelledImages) -> LabelledImages:
    """The images, shrunk where they are large."""
    return data.resized(MAX_SIDE) if max(data.shape[1:]) > MAX_SIDE else data


def excerpt(index: int = 0) -> tuple[str, torch.Tensor, torch.Tensor]:
    """Name of a source of Python's standard library, its first nine tenths and its last tenth, as tokens.

    Rare characters become one token.

    Args:
        index: number of the source; suites have the first one.

    Raises:
        ValueError: if this Python has no sources.
    """
    text = resolve_texts(None)[index]
    tokens = text.tokens.clamp(max=VOCABULARY - 1)
    cut = 9 * len(tokens) // 10
    return text.name, tokens[:cut], tokens[cut:]
