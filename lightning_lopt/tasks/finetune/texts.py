"""Fine-tuning on text: character models that were pretrained on one text, and a short part of another text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_lopt.checks import check_name_options, check_size_options
from lightning_lopt.tasks._draw import chance, choice, integer
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.char_rnn import CharRNNTask
from lightning_lopt.tasks.char_transformer import CharTransformerTask
from lightning_lopt.tasks.finetune.family import Body, FineTuneFamily
from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.text import Text, TextLike, resolve_texts

NETWORKS: dict[str, Callable[..., Task]] = {"transformer": CharTransformerTask, "gru": CharRNNTask}
OLD_SHARE = 0.6  # the first part of each text, for pretraining; new tasks have the rest
MAX_OLD, MAX_VALID = 60_000, 6_000


class FineTuneTexts(FineTuneFamily[str]):
    """Character models with a pretrained body and a new head.

    A network is pretrained on the first part of a text. A new task has a few thousand characters of the last part of
    any text, in the alphabet of the first text; some tasks read the characters backwards.

    Args:
        text: one or several texts or paths of text files; ``None`` means sources of Python's standard library.
        networks: some of :data:`NETWORKS` to draw from.
        characters: smallest and largest number of characters to fine-tune on, drawn log-uniformly.
        vocabularies: numbers of different tokens to draw from; rarer characters become one token.
        lengths: lengths of a window to draw from.
        widths: numbers of features to draw from, divisible by 2.
        options: see :class:`~lightning_lopt.tasks.finetune.family.FineTuneFamily`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or a text cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import Text
        >>> text = Text.from_string("to be or not to be, that is the question. " * 200, "hamlet")
        >>> sizes = {"characters": (500, 1000), "vocabularies": (16,), "lengths": (8,), "widths": (8,)}
        >>> family = FineTuneTexts(text, networks=("gru",), bodies=1, steps=5, **sizes)
        >>> family.sample(torch.Generator().manual_seed(0)).head
        ('head.weight', 'head.bias')
    """

    name = "finetune_text"

    def __init__(
        self,
        text: TextLike | None = None,
        networks: Sequence[str] = tuple(NETWORKS),
        characters: tuple[int, int] = (1_000, 6_000),
        vocabularies: Sequence[int] = (32, 48, 64),
        lengths: Sequence[int] = (16, 24),
        widths: Sequence[int] = (16, 24, 32),
        **options: Any,
    ) -> None:
        super().__init__(**{"batch_sizes": (4, 8), **options})
        self.ranges |= {
            "networks": check_name_options(networks, "networks", tuple(NETWORKS)),
            "characters": check_size_options(characters, "characters"),
            "vocabularies": check_size_options(vocabularies, "vocabularies"),
            "lengths": check_size_options(lengths, "lengths"),
            "widths": check_size_options(widths, "widths"),
        }
        self.sources = resolve_texts(text)

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"text": [source.name for source in self.sources]}

    def _draw_body(self, generator: torch.Generator, number: int) -> Body[str]:
        source = choice(self.sources, generator)
        network_name = self.pick("networks", generator)
        settings = {key: self.pick(f"{key}s", generator) for key in ("length", "width")}
        common = self.draw_architecture(generator)
        if network_name == "transformer":
            settings |= common | {"depth": integer(1, 3, generator)}
        else:
            settings |= {key: value for key, value in common.items() if key != "activation"}
        vocabulary = min(self.pick("vocabularies", generator), len(source.alphabet))
        alphabet = source.alphabet[:vocabulary]
        tokens = source.in_alphabet(alphabet)[: round(OLD_SHARE * len(source))][:MAX_OLD]
        cut = 9 * len(tokens) // 10
        task = NETWORKS[network_name](
            tokens[:cut], tokens[cut:], vocabulary, **settings, batch_size=16, name=f"{source.name}-old"
        )
        config = {"text": source.name, "network": network_name, "number": number, "vocabulary": vocabulary} | settings
        label = f"{source.name}-{network_name}{number}-v{vocabulary}"
        return Body(Pretraining(task, self.steps, 5e-3, number), settings, alphabet, label, None, config)

    def _draw_task(self, body: Body[str], batch_size: int, generator: torch.Generator) -> Task:
        source: Text = choice(self.sources, generator)
        tokens = source.in_alphabet(body.source)[round(OLD_SHARE * len(source)) :]
        valid = tokens[-min(MAX_VALID, len(tokens) // 2) :]
        tokens = tokens[: -len(valid)]
        size = min(self.between("characters", generator), len(tokens))
        start = integer(0, len(tokens) - size + 1, generator)
        backwards = chance(0.25, generator)
        train, valid = (part.flip(0) if backwards else part for part in (tokens[start : start + size], valid))
        new_text = {"text": source.name, "start": start, "size": size, "backwards": backwards}
        config = {"family": self.name, "batch_size": batch_size, "new": new_text} | body.config
        name = self.new_task_name(body, batch_size, generator)
        options = body.settings | {"batch_size": batch_size, "name": name, "config": config}
        return NETWORKS[body.config["network"]](train, valid, len(body.source), **options)
