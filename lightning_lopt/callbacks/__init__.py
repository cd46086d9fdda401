"""Lightning callbacks."""

from typing import TYPE_CHECKING

from lightning_lopt._lazy import lazily

if TYPE_CHECKING:
    from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter
    from lightning_lopt.callbacks.meta_validation import MetaValidation
    from lightning_lopt.callbacks.online_meta_training import MetaTraining, OnlineMetaTraining

__all__ = ["LearnedOptimizerAdapter", "MetaTraining", "MetaValidation", "OnlineMetaTraining"]

__getattr__ = lazily(__name__, ("adapter", "online_meta_training", "meta_validation"))
