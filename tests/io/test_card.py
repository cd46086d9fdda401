"""Model cards: what is printed, in which order, and what cannot be a card."""

from __future__ import annotations

import doctest

import pytest

from lightning_lopt import SGDRule, save_rule
from lightning_lopt.io import Card, card, load_card

FULL = Card(
    "A rule",
    summary="  Two\nlines. ",
    recipe="```bash\npython examples/meta_train.py\n```",
    tasks="Digits.",
    cost="1 h",
    results="| a | b |\n|---|---|",
    limitations="Many.",
    licence="MIT",
)


RENDERED = """\
---
license: mit
library_name: lightning_lopt
tags:
- learned-optimizer
metrics:
- loss
---

# A rule

Two
lines.

## Recipe

```bash
python examples/meta_train.py
```

## Tasks it was meta-trained on

Digits.

## Cost of meta-training

1 h

## Results

| a | b |
|---|---|

## Limitations

Many.

## Licence

MIT
"""


def test_full_card_word_for_word():
    assert FULL.render() == RENDERED


def test_what_is_left_empty_is_printed_as_not_recorded():
    text = Card(" Bare\n", recipe=" \n").render()
    assert text.count("Not recorded.") == len(card.SECTIONS)
    assert "# Bare\n\n## Recipe\n" in text
    assert text.endswith("## Licence\n\nApache-2.0\n")


@pytest.mark.parametrize("title", ["", "  \n", "two\nlines", "\nlate", "a\u2028b"])
def test_title_is_one_line(title):
    with pytest.raises(ValueError, match="must be one line of text"):
        Card(title)


@pytest.mark.parametrize("licence", ["", "MIT\n", "MIT or BSD", "a: b", "---", "-MIT", "../LICENSE"])
def test_licence_is_an_identifier(licence):
    """It goes into the front matter, where anything else would be other YAML."""
    with pytest.raises(ValueError, match="must be an SPDX identifier"):
        Card("A rule", licence=licence)


def test_examples_in_docstrings():
    results = doctest.testmod(card)
    assert results.attempted >= 4
    assert results.failed == 0


def test_cards_are_saved_and_loaded_word_for_word(tmp_path):
    assert load_card(save_rule(SGDRule(), tmp_path / "card", card=FULL)) == FULL.render()
    assert load_card(save_rule(SGDRule(), tmp_path / "text", card="σ\r\n")) == "σ\r\n"
    assert "# Update rule sgd\n" in load_card(save_rule(SGDRule(), str(tmp_path / "none")))
