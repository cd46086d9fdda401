"""The model card of a rule: its origin, cost, results and licence."""

from __future__ import annotations

import re
from dataclasses import dataclass

SECTIONS = {
    "recipe": "Recipe",
    "tasks": "Tasks it was meta-trained on",
    "cost": "Cost of meta-training",
    "results": "Results",
    "limitations": "Limitations",
}


@dataclass(frozen=True)
class Card:
    """The contents of a model card. Each text is markdown; an empty one is printed as "not recorded".

    Args:
        title: heading, on one line.
        summary: what the rule is, in a sentence or two.
        recipe: the command that makes the weights again.
        tasks: the task distribution of meta-training.
        cost: hardware and hours of meta-training.
        results: tables against tuned baselines, with the losses as well as the wins.
        limitations: where the rule should not be used.
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

    def __post_init__(self) -> None:
        if not self.title.strip() or len(self.title.splitlines()) != 1:
            raise ValueError(f"the title of a card must be one line of text, got {self.title!r}.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", self.licence):
            raise ValueError(f"licence must be an SPDX identifier such as 'Apache-2.0', got {self.licence!r}.")

    def render(self) -> str:
        """The card as markdown, with the front matter that the Hugging Face Hub reads.

        >>> print(Card("Adam", licence="MIT").render()[:71])
        ---
        license: mit
        library_name: lightning_lopt
        tags:
        - learned-optimizer
        """
        # The Hub writes licence identifiers in lower case, and has words of its own for other licences.
        licence = {"LicenseRef-unknown": "unknown"}.get(self.licence, self.licence.lower())
        lines = ["---", f"license: {licence}", "library_name: lightning_lopt", "tags:"]
        lines += ["- learned-optimizer", "---", "", f"# {self.title.strip()}", ""]
        if self.summary.strip():
            lines += [self.summary.strip(), ""]
        for field, heading in SECTIONS.items():
            lines += [f"## {heading}", "", getattr(self, field).strip() or "Not recorded.", ""]
        return "\n".join([*lines, "## Licence", "", self.licence, ""])
