"""The model card of a rule: its origin, cost, results and licence."""

from __future__ import annotations

import re
from dataclasses import dataclass

KEY_NUMBERS = "Key numbers"
"""Heading of the section that the command ``lightning-lopt info`` prints first."""
SECTIONS = {
    "recipe": "Recipe",
    "tasks": "Tasks it was meta-trained on",
    "cost": "Cost of meta-training",
    "results": "Results",
    "limitations": "Limitations",
}
_FRONT_MATTER = re.compile(r"\A---\r?\n(?P<text>.*?)^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE | re.DOTALL)
_KEY_SECTION = re.compile(rf"^## {KEY_NUMBERS}\r?\n(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Card:
    """The contents of a model card. Each text is markdown; an empty text is printed as "Not recorded.".

    Args:
        title: heading, on one line.
        summary: description of the rule, in one or two sentences.
        key_numbers: a list of the numbers that a reader needs first: size, costs, results, and tasks where the rule
            loses. If the text is empty, the card has no such section.
        recipe: the command that makes the weights again.
        tasks: the task distribution of meta-training.
        cost: hardware and hours of meta-training.
        results: tables against tuned baselines, with the losses as well as the wins.
        limitations: cases in which the rule should not be used.
        licence: SPDX identifier of the licence of the weights.

    Raises:
        ValueError: if ``title`` is empty or has several lines, or ``licence`` is not an identifier.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule, load_card, save_rule
        >>> card = Card("Adam at 0.01", recipe="tuned by hand", limitations="It was tried on one model.", licence="MIT")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = load_card(save_rule(AdamRule(0.01), folder, card=card))
        >>> "# Adam at 0.01" in text.splitlines()
        True
    """

    title: str
    summary: str = ""
    recipe: str = ""
    tasks: str = ""
    cost: str = ""
    results: str = ""
    limitations: str = ""
    licence: str = "Apache-2.0"
    key_numbers: str = ""

    def __post_init__(self) -> None:
        if not self.title.strip() or len(self.title.splitlines()) != 1:
            raise ValueError(f"the title of a card must be one line of text, got {self.title!r}.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", self.licence):
            raise ValueError(f"licence must be an SPDX identifier such as 'Apache-2.0', got {self.licence!r}.")

    def render(self) -> str:
        """The card as markdown, with the front matter that the Hugging Face Hub reads.

        >>> print(Card("Adam", licence="MIT").render()[:87])
        ---
        license: mit
        library_name: lightning_lopt
        tags:
        - learned-optimizer
        metrics:
        - loss
        """
        # The Hub writes licence identifiers in lower case, and has a special word for an unknown licence.
        licence = {"LicenseRef-unknown": "unknown"}.get(self.licence, self.licence.lower())
        lines = ["---", f"license: {licence}", "library_name: lightning_lopt", "tags:"]
        lines += ["- learned-optimizer", "metrics:", "- loss", "---", "", f"# {self.title.strip()}", ""]
        if self.summary.strip():
            lines += [self.summary.strip(), ""]
        if self.key_numbers.strip():
            lines += [f"## {KEY_NUMBERS}", "", self.key_numbers.strip(), ""]
        for field, heading in SECTIONS.items():
            lines += [f"## {heading}", "", getattr(self, field).strip() or "Not recorded.", ""]
        return "\n".join([*lines, "## Licence", "", self.licence, ""])


def key_numbers_of(markdown: str) -> tuple[str, str]:
    """The section with the key numbers of a card, and the remaining text of the card without its front matter.

    >>> key_numbers_of(Card("Adam", key_numbers="- constants: 4").render())[0]
    '- constants: 4'
    """
    text = with_front_matter(markdown, None)
    section = _KEY_SECTION.search(text)
    if section is None:
        return "", text.strip()
    return section["body"].strip(), (text[: section.start()] + text[section.end() :]).strip()


def front_matter_of(markdown: str) -> str | None:
    """The YAML between the lines ``---`` at the top of a card; ``None`` if the card has no front matter.

    >>> front_matter_of("---\\nlicense: mit\\n---\\n# Adam\\n")
    'license: mit\\n'
    """
    match = _FRONT_MATTER.match(markdown)
    return None if match is None else match["text"]


def with_front_matter(markdown: str, text: str | None) -> str:
    """The card ``markdown`` with the front matter ``text``, or without front matter if ``text`` is ``None``.

    >>> with_front_matter("# Adam\\n", "license: mit\\n")
    '---\\nlicense: mit\\n---\\n\\n# Adam\\n'
    """
    body = _FRONT_MATTER.sub("", markdown, count=1)
    return body if text is None else f"---\n{text}---\n\n{body.lstrip()}"
