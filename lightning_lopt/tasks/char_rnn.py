"""Character language models with gated recurrent units or long short-term memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_name_options, check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.char_lm import CharFamily, CharTask
from lightning_lopt.tasks.layers import linear
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.recurrent import gru_step, lstm_step
from lightning_lopt.tasks.text import TextLike

CELLS = ("gru", "lstm")


class CharRNNTask(CharTask):
    """An ``embedding`` of characters, recurrent layers ``cells.i.input`` and ``cells.i.hidden``, a linear ``head``.

    The state is zero at the start of every window. Gates have PyTorch's order.

    Args:
        train: tokens to train on.
        valid: held-out tokens.
        vocabulary: number of different tokens.
        cell: ``"gru"`` or ``"lstm"``.
        embedding: features of a character.
        width: features of a recurrent layer H.
        depth: number of recurrent layers.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``length``, ``batch_size``, ``name``, ``config``.

    Example:
        >>> from lightning_lopt.tasks import Text
        >>> text = Text.from_string("to be or not to be, that is the question. " * 50, "hamlet")
        >>> train, valid = text.tokens[:2000], text.tokens[2000:]
        >>> task = CharRNNTask(train, valid, len(text.alphabet), "lstm", width=16, length=8, batch_size=4)
        >>> params, windows = task.init(torch.Generator()), task.batch(torch.Generator())["tokens"]
        >>> tuple(windows.shape), tuple(task.logits(params, windows[:, :-1]).shape)
        ((4, 9), (4, 8, 15))
    """

    def __init__(
        self,
        train: Tensor,
        valid: Tensor,
        vocabulary: int,
        cell: str = "gru",
        embedding: int = 16,
        width: int = 32,
        depth: int = 1,
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.table("embedding", vocabulary, embedding)
        gates = 3 if cell == "gru" else 4
        for layer in range(depth):
            layout.linear(f"cells.{layer}.input", width if layer else embedding, gates * width)
            layout.linear(f"cells.{layer}.hidden", width, gates * width)
        layout.linear("head", width, vocabulary, role="head")
        super().__init__(train, valid, vocabulary, layout, **options)
        self.cell = cell
        self.width = width
        self.depth = depth

    def logits(self, params: Params, tokens: Tensor) -> Tensor:
        # Indexing is the fastest of five ways to look up embeddings under vmap. Time in ms (96 x 16 table, 512 tokens,
        # 16 particles, one thread of an x86 server CPU):
        #
        #   indexing   F.embedding   product with one-hot rows
        #        0.9           1.1                         2.8
        x = params["embedding.weight"][tokens.mT]  # (T, B, features): the steps come first
        for layer in range(self.depth):
            x = self._run(params, f"cells.{layer}", x)
        return linear(params, "head", x.transpose(0, 1))

    def _run(self, params: Params, name: str, x: Tensor) -> Tensor:
        """One recurrent layer over all steps, (T, B, features) to (T, B, H)."""
        weight, bias = params[f"{name}.hidden.weight"], params[f"{name}.hidden.bias"]
        hidden = cell = x.new_zeros(x.shape[1], self.width)
        outputs = []
        for projected in linear(params, f"{name}.input", x).unbind(0):
            if self.cell == "gru":
                hidden = gru_step(projected, hidden, weight, bias)
            else:
                hidden, cell = lstm_step(projected, (hidden, cell), weight, bias)
            outputs.append(hidden)
        return torch.stack(outputs)


class CharRNN(CharFamily):
    """Recurrent character models of different cell, width and depth on excerpts of text.

    Args:
        text: sources of text; see :class:`~lightning_lopt.tasks.char_lm.CharFamily`, also for ``options``.
        cells: some of :data:`CELLS`.
        embeddings: features of a character to draw from.
        widths: features of a recurrent layer to draw from.
        depths: numbers of recurrent layers to draw from.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or a text cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import Text
        >>> text = Text.from_string("to be or not to be, that is the question. " * 200, "hamlet")
        >>> sizes = {"lengths": (16,), "vocabularies": (16,), "excerpts": (1000, 2000)}
        >>> family = CharRNN(text, cells=("gru",), widths=(16,), depths=(1,), **sizes)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'char_rnn/hamlet~5071+1405-v15-t16/gru-e16-w16-d1/b8'
    """

    name = "char_rnn"
    layers = ("recurrent layers", "embeddings")
    task_class = CharRNNTask

    def __init__(
        self,
        text: TextLike | None = None,
        cells: Sequence[str] = CELLS,
        embeddings: Sequence[int] = (8, 16),
        widths: Sequence[int] = (16, 32, 48),
        depths: Sequence[int] = (1, 1, 2),
        **options: Any,
    ) -> None:
        super().__init__(text, activations=None, **{"lengths": (8, 16, 24), **options})
        self.ranges |= {
            "cells": check_name_options(cells, "cells", CELLS),
            "embeddings": check_size_options(embeddings, "embeddings"),
            "widths": check_size_options(widths, "widths"),
            "depths": check_size_options(depths, "depths"),
        }

    def _draw(self, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        settings = {key: self.pick(f"{key}s", generator) for key in ("cell", "embedding", "width", "depth")}
        return settings, "{cell}-e{embedding}-w{width}-d{depth}".format(**settings)
