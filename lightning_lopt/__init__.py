"""Learned optimizers for PyTorch Lightning."""

from lightning_lopt.__about__ import __version__
from lightning_lopt.callbacks import LearnedOptimizerAdapter, MetaValidation
from lightning_lopt.io import available_rules, load_rule, save_rule
from lightning_lopt.meta import PES, FullES, MetaLoss, MetaTrainer, TaskDataModule
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules import AdamRule, ResidualRule, SGDRule, State, StepContext, UpdateRule, register_rule

__all__ = [
    "PES",
    "AdamRule",
    "FullES",
    "LearnedOptimizer",
    "LearnedOptimizerAdapter",
    "MetaLoss",
    "MetaTrainer",
    "MetaValidation",
    "ResidualRule",
    "SGDRule",
    "State",
    "StepContext",
    "TaskDataModule",
    "UpdateRule",
    "__version__",
    "available_rules",
    "load_rule",
    "register_rule",
    "save_rule",
]
