"""Rules behind the ``torch.optim.Optimizer`` interface."""

from lightning_lopt.optim.groups import named_groups
from lightning_lopt.optim.learned_optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer", "named_groups"]
