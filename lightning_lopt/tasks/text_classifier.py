"""Classification of pieces of text by a transformer with the body of a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.attention import Transformer
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.layers import linear
from lightning_lopt.tasks.layout import Layout


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Pieces of text of the same length; each piece has a class.

    Attributes:
        inputs: tokens, int64, shape ``(N, T)``.
        targets: int64, shape ``(N,)``, in ``[0, classes)``.
        classes: number of classes, >= 2.
    """

    inputs: Tensor
    targets: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.targets)


def pieces_of(parts: list[Tensor], length: int, shots: int) -> LabelledTexts:
    """Evenly spaced pieces of several texts, whose class is the number of the text.

    Args:
        parts: tokens of each text, int64, shape ``(M,)`` with M >= ``length``; at least two texts.
        length: number T of tokens of a piece.
        shots: number of pieces of each text; the pieces of a short text overlap.

    Example:
        >>> pieces_of([torch.arange(5), torch.arange(10, 15)], length=2, shots=2).inputs.tolist()
        [[0, 1], [3, 4], [10, 11], [13, 14]]
    """
    pieces = []
    for tokens in parts:
        starts = torch.linspace(0, len(tokens) - length, shots).round().long()
        pieces.append(tokens[starts[:, None] + torch.arange(length)])
    return LabelledTexts(torch.cat(pieces), torch.arange(len(parts)).repeat_interleave(shots), len(parts))


class TextClassifierTask(ClassificationTask):
    """The network of :class:`~lightning_lopt.tasks.CharTransformerTask`, with the mean over the tokens before the head.

    Parameters have the same names, so that a language model can be the pretrained body.

    Args:
        train: pieces to train on.
        valid: held-out pieces.
        vocabulary: number of different tokens.
        width: features of a token W.
        depth: number of blocks.
        heads: attention heads; divides ``width``.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        expansion: hidden features of the perceptrons, in units of W.
        options: ``batch_size``, ``name``, ``config``.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    References: Radford et al. 2018 on a language model as the start of a classifier

    Example:
        >>> texts = pieces_of([torch.arange(9), torch.arange(9).flip(0)], length=4, shots=3)
        >>> task = TextClassifierTask(texts, texts, 9, width=8, depth=1)
        >>> tuple(task.logits(task.init(torch.Generator()), texts.inputs).shape)
        (6, 2)
    """

    def __init__(
        self,
        train: LabelledTexts,
        valid: LabelledTexts,
        vocabulary: int,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        activation: str = "gelu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        expansion: int = 2,
        **options: Any,
    ) -> None:
        self.transformer = Transformer(width, depth, heads, activation, causal=True, expansion=expansion)
        layout = Layout(scheme, init_scale)
        layout.table("embedding", vocabulary, width)
        layout.table("position", train.inputs.shape[1], width)
        self.transformer.add_to(layout)
        layout.linear("head", width, train.classes, role="head")
        super().__init__(train, valid, layout, **options)

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        x = params["embedding.weight"][inputs] + params["position.weight"]
        return linear(params, "head", self.transformer(params, x).mean(1))
