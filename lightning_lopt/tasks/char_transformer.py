"""Character language models with a causal transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance
from lightning_lopt.tasks.attention import Transformer
from lightning_lopt.tasks.char_lm import CharFamily, CharTask
from lightning_lopt.tasks.layers import linear
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.text import TextLike


class CharTransformerTask(CharTask):
    """An ``embedding`` of characters plus a learned ``position``, causal transformer blocks, a ``norm``, logits.

    Args:
        train: tokens to train on.
        valid: held-out tokens.
        vocabulary: number of different tokens.
        width: features of a token W.
        depth: number of blocks.
        heads: attention heads; divides ``width``.
        tied: whether logits are products with the ``embedding``; otherwise they come from a linear ``head``.
        prenorm, expansion: see :class:`~lightning_lopt.tasks.attention.Transformer`.
        length: number T of tokens in a window.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    References: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762

    Example:
        >>> from lightning_lopt.tasks import Text
        >>> text = Text.from_string("to be or not to be, that is the question. " * 50, "hamlet")
        >>> train, valid = text.tokens[:2000], text.tokens[2000:]
        >>> task = CharTransformerTask(train, valid, len(text.alphabet), width=16, depth=1, length=8, batch_size=4)
        >>> params, windows = task.init(torch.Generator()), task.batch(torch.Generator())["tokens"]
        >>> tuple(windows.shape), tuple(task.logits(params, windows[:, :-1]).shape)
        ((4, 9), (4, 8, 15))
    """

    def __init__(
        self,
        train: Tensor,
        valid: Tensor,
        vocabulary: int,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        tied: bool = False,
        prenorm: bool = True,
        length: int = 32,
        activation: str = "gelu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        expansion: int = 2,
        **options: Any,
    ) -> None:
        self.transformer = Transformer(width, depth, heads, activation, prenorm, causal=True, expansion=expansion)
        layout = Layout(scheme, init_scale)
        layout.table("embedding", vocabulary, width)
        layout.table("position", length, width)
        self.transformer.add_to(layout)
        if not tied:
            layout.linear("head", width, vocabulary, role="head")
        super().__init__(train, valid, vocabulary, layout, length, **options)
        self.tied = tied

    def logits(self, params: Params, tokens: Tensor) -> Tensor:
        x = params["embedding.weight"][tokens] + params["position.weight"][: tokens.shape[1]]
        x = self.transformer(params, x)
        return x @ params["embedding.weight"].mT if self.tied else linear(params, "head", x)


class CharTransformer(CharFamily):
    """Causal transformers of different size and structure on excerpts of text.

    Args:
        text: sources of text; see :class:`~lightning_lopt.tasks.char_lm.CharFamily`, also for ``options``.
        widths: features of a token to draw from.
        depths: numbers of blocks to draw from.
        heads: numbers of attention heads to draw from; each must divide every width.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or a text cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import Text
        >>> text = Text.from_string("to be or not to be, that is the question. " * 200, "hamlet")
        >>> sizes = {"lengths": (16,), "vocabularies": (16,), "excerpts": (1000, 2000)}
        >>> family = CharTransformer(text, widths=(16,), depths=(1,), **sizes)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'char_transformer/hamlet~5077+1861-v15-t16/w16-d1-h4-pre/silu/b8'
    """

    name = "char_transformer"
    layers = ("attention", "embeddings")
    task_class = CharTransformerTask

    def __init__(
        self,
        text: TextLike | None = None,
        widths: Sequence[int] = (16, 24, 32),
        depths: Sequence[int] = (1, 2),
        heads: Sequence[int] = (2, 4),
        **options: Any,
    ) -> None:
        super().__init__(text, **options)
        self.ranges |= {
            "widths": check_size_options(widths, "widths"),
            "depths": check_size_options(depths, "depths"),
            "heads": check_size_options(heads, "heads"),
        }

    def _draw(self, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        settings = {
            "width": self.pick("widths", generator),
            "depth": self.pick("depths", generator),
            "heads": self.pick("heads", generator),
            "tied": chance(0.5, generator),
            "prenorm": chance(0.75, generator),
        }
        shape = "w{width}-d{depth}-h{heads}".format(**settings)
        return settings, shape + f"{'-tied' * settings['tied']}-{'pre' if settings['prenorm'] else 'post'}"
