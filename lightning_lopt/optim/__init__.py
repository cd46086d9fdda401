"""Rules behind the ``torch.optim.Optimizer`` interface."""

from lightning_lopt.optim.groups import labels_of, named_groups
from lightning_lopt.optim.guard import LossGuard
from lightning_lopt.optim.learned_optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer", "LossGuard", "labels_of", "named_groups"]
