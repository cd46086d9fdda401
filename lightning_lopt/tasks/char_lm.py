"""Language models of characters: the common part of their tasks and families."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance, choice, integer, uniform
from lightning_lopt.tasks.base import Batch, Split, Task
from lightning_lopt.tasks.examples import accuracy
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.text import TextLike, resolve_texts


class CharTask(Task):
    """Cross-entropy of the next character, in nats per character; a subclass defines the logits.

    A batch is ``{"tokens": (*lead, B, T + 1) int64}``: windows that begin anywhere in the split. A split is measured on
    at most ``MAX_WINDOWS`` evenly spaced windows, which do not overlap.

    Args:
        train: tokens to train on, int64, shape ``(N,)``, longer than T.
        valid: held-out tokens.
        vocabulary: number of different tokens.
        layout: the parameters.
        length: T, tokens that are predicted in one window.
        batch_size: B, windows in a mini-batch.
        name: name of the task.
        config: settings that were drawn for the task.

    Raises:
        ValueError: if a split is not longer than T.

    Example:
        >>> class Bigrams(CharTask):
        ...     def logits(self, params, tokens):
        ...         return nn.functional.one_hot(tokens, 5).float() @ params["head.weight"].mT + params["head.bias"]
        >>> tokens, layout = torch.arange(200) % 5, Layout()
        >>> layout.linear("head", 5, 5, role="head")
        >>> task = Bigrams(tokens[:150], tokens[150:], vocabulary=5, layout=layout, length=8, batch_size=4)
        >>> round(task.loss(task.init(torch.Generator().manual_seed(0)), task.full_batch("valid")).item(), 1)
        1.6
    """

    MAX_WINDOWS: ClassVar[int] = 128

    def __init__(
        self,
        train: Tensor,
        valid: Tensor,
        vocabulary: int,
        layout: Layout,
        length: int = 32,
        batch_size: int = 8,
        name: str = "char_lm",
        config: dict[str, Any] | None = None,
    ) -> None:
        for split, tokens in (("train", train), ("valid", valid)):
            if len(tokens) <= length:
                raise ValueError(
                    f"{name}: the {split} split has {len(tokens)} characters, too few for windows of {length} and the "
                    "next character; give a longer text."
                )
        self.tokens: dict[Split, Tensor] = {"train": train, "valid": valid}
        self.layout = layout
        self.roles = layout.roles
        self.loss_scale = math.log(vocabulary)
        self.length = length
        self.batch_size = batch_size
        self.steps_per_epoch = len(train) / (length * batch_size)
        self.name = name
        self.config = config or {}

    @abstractmethod
    def logits(self, params: Params, tokens: Tensor) -> Tensor:
        """Logits of the next token at each position, shape ``(B, T, vocabulary)``, for tokens of shape ``(B, T)``."""

    def init(self, generator: torch.Generator) -> Params:
        return self.layout.draw(generator)

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        tokens = self.tokens[split]
        starts = torch.randint(len(tokens) - self.length, (*lead, self.batch_size, 1), generator=generator)
        return {"tokens": tokens[starts + torch.arange(self.length + 1)]}

    def full_batch(self, split: Split) -> Batch:
        windows = self.tokens[split].unfold(0, self.length + 1, self.length)
        rows = torch.linspace(0, len(windows) - 1, min(len(windows), self.MAX_WINDOWS)).round().long()
        return {"tokens": windows[rows]}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        tokens = batch["tokens"]
        logits = self.logits(params, tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        tokens = batch["tokens"]
        return {"accuracy": accuracy(self.logits(params, tokens[:, :-1]), tokens[:, 1:])}


class CharFamily(ModelFamily):
    """The common part of families of character models: draws of an excerpt of a text, its alphabet, the window.

    An excerpt may be read backwards, and up to a tenth of its training characters may be replaced by random ones. The
    last part of an excerpt is held out.

    Args:
        text: one or several texts or paths of text files; ``None`` means sources of Python's standard library.
        lengths: lengths of a window to draw from.
        vocabularies: numbers of different tokens to draw from; rarer characters of a text become one token.
        excerpts: smallest and largest number of characters of an excerpt, drawn log-uniformly.
        valid_fraction: share of an excerpt that is held out.
        options: ``activations``, ``batch_sizes``, ``schemes``, ``init_scales`` of :class:`ModelFamily`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or a text cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import CharRNN, CharTransformer, Text
        >>> text = Text.from_string("to be or not to be, that is the question. " * 200, "hamlet")
        >>> sizes = {"lengths": (16,), "vocabularies": (16,), "excerpts": (1000, 2000)}
        >>> families = [CharRNN(text, **sizes), CharTransformer(text, **sizes)]
        >>> [family.sample(torch.Generator().manual_seed(0)).length for family in families]
        [16, 16]
    """

    task_class: ClassVar[Callable[..., CharTask]]

    def __init__(
        self,
        text: TextLike | None = None,
        *,
        lengths: Sequence[int] = (16, 24, 32),
        vocabularies: Sequence[int] = (32, 64, 96),
        excerpts: tuple[int, int] = (5_000, 100_000),
        valid_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**{"batch_sizes": (4, 8), **options})
        self.ranges |= {
            "lengths": check_size_options(lengths, "lengths"),
            "vocabularies": check_size_options(vocabularies, "vocabularies"),
            "excerpts": check_size_options(excerpts, "excerpts"),
        }
        if not 0 < valid_fraction < 1:
            raise ValueError(f"valid_fraction must lie in (0, 1), got {valid_fraction!r}.")
        self.valid_fraction = valid_fraction
        self.sources = resolve_texts(text)

    @property
    def config(self) -> dict[str, Any]:
        entries = {"text": [source.name for source in self.sources], "valid_fraction": self.valid_fraction}
        return super().config | entries

    def sample(self, generator: torch.Generator) -> CharTask:
        source = choice(self.sources, generator)
        settings = self.draw_common(generator) | {"length": self.pick("lengths", generator)}
        size = min(self.between("excerpts", generator), len(source))
        start = integer(0, len(source) - size + 1, generator)
        excerpt: dict[str, Any] = {
            "start": start,
            "size": size,
            "vocabulary": min(self.pick("vocabularies", generator), len(source.alphabet)),
            "backwards": chance(0.25, generator),
            "noise": round(uniform(0.0, 0.1, generator), 3) if chance(0.25, generator) else 0.0,
        }
        tokens = source.tokens[start : start + size].clamp(max=excerpt["vocabulary"] - 1)
        tokens = tokens.flip(0) if excerpt["backwards"] else tokens
        held_out = max(round(self.valid_fraction * size), settings["length"] + 1)
        train, valid = tokens[:-held_out], tokens[-held_out:]
        is_replaced = torch.rand(len(train), generator=generator) < excerpt["noise"]
        train = torch.where(
            is_replaced, torch.randint(excerpt["vocabulary"], (len(train),), generator=generator), train
        )
        architecture, shape = self._draw(generator)
        settings |= architecture
        label = f"{source.name}~{start}+{size}-v{excerpt['vocabulary']}-t{settings['length']}"
        name = self.task_name(label, shape, settings)
        config = {"family": self.name, "text": source.name, "excerpt": excerpt} | settings
        return type(self).task_class(train, valid, excerpt["vocabulary"], **settings, name=name, config=config)

    @abstractmethod
    def _draw(self, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        """Draw an architecture: keyword arguments of ``task_class``, and a short name."""
