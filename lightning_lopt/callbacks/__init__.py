"""Lightning callbacks."""

from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter
from lightning_lopt.callbacks.meta_training import MetaTraining
from lightning_lopt.callbacks.meta_validation import MetaValidation

__all__ = ["LearnedOptimizerAdapter", "MetaTraining", "MetaValidation"]
