"""Lightning callbacks."""

from typing import TYPE_CHECKING

from lightning_lopt._lazy import lazily

if TYPE_CHECKING:
    from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter
    from lightning_lopt.callbacks.meta_training import MetaTraining
    from lightning_lopt.callbacks.meta_validation import MetaValidation

__all__ = ["LearnedOptimizerAdapter", "MetaTraining", "MetaValidation"]

__getattr__ = lazily(__name__, ("adapter", "meta_training", "meta_validation"))
