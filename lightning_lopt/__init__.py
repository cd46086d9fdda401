"""Learned optimizers for PyTorch Lightning."""

from lightning_lopt.__about__ import __version__
from lightning_lopt.callbacks import LearnedOptimizerAdapter
from lightning_lopt.io import available_rules, load_rule, save_rule
from lightning_lopt.meta import (
    NRES,
    PES,
    ESSingle,
    FullES,
    Horizons,
    MetaLoss,
    MetaTrainer,
    TaskDataModule,
    TruncatedBackprop,
    TruncatedES,
)
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules import AdamRule, ResidualRule, SGDRule, State, StepContext, UpdateRule, register_rule

__all__ = [
    "NRES",
    "PES",
    "AdamRule",
    "ESSingle",
    "FullES",
    "Horizons",
    "LearnedOptimizer",
    "LearnedOptimizerAdapter",
    "MetaLoss",
    "MetaTrainer",
    "ResidualRule",
    "SGDRule",
    "State",
    "StepContext",
    "TaskDataModule",
    "TruncatedBackprop",
    "TruncatedES",
    "UpdateRule",
    "__version__",
    "available_rules",
    "load_rule",
    "register_rule",
    "save_rule",
]
