"""Lightning callbacks."""

from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter

__all__ = ["LearnedOptimizerAdapter"]
