"""Rules as files: ``model.safetensors``, ``config.json`` and a model card. Content of a file is never executed."""

from typing import TYPE_CHECKING

from lightning_lopt._lazy import lazily
from lightning_lopt.errors import RuleFileError
from lightning_lopt.io.card import Card
from lightning_lopt.io.identity import load_meta_training, weights_sha256
from lightning_lopt.io.load import load_card, load_rule
from lightning_lopt.io.push import push_rule
from lightning_lopt.io.save import save_rule
from lightning_lopt.io.sources import available_rules

if TYPE_CHECKING:
    from lightning_lopt.io.importers import convert_rule, import_rule

__all__ = [
    "Card",
    "RuleFileError",
    "available_rules",
    "convert_rule",
    "import_rule",
    "load_card",
    "load_meta_training",
    "load_rule",
    "push_rule",
    "save_rule",
    "weights_sha256",
]

# The importers are loaded at their first use, because training does not need them.
__getattr__ = lazily(__name__, ("importers",))
