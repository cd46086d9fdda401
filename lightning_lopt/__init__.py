"""Learned optimizers for PyTorch Lightning."""

from lightning_lopt.__about__ import __version__
from lightning_lopt.callbacks import LearnedOptimizerAdapter, MetaValidation
from lightning_lopt.io import Card, available_rules, load_card, load_rule, save_rule
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
from lightning_lopt.rules import (
    AdafacMLPRule,
    AdamRule,
    Celo2BaseRule,
    Celo2Rule,
    CeloRule,
    MLPRule,
    ResidualRule,
    RNNMLPRule,
    SGDRule,
    State,
    StepContext,
    UpdateRule,
    VeLORule,
    register_rule,
)
from lightning_lopt.tasks import LightningTask

__all__ = [
    "NRES",
    "PES",
    "AdafacMLPRule",
    "AdamRule",
    "Card",
    "Celo2BaseRule",
    "Celo2Rule",
    "CeloRule",
    "ESSingle",
    "FullES",
    "Horizons",
    "LearnedOptimizer",
    "LearnedOptimizerAdapter",
    "LightningTask",
    "MLPRule",
    "MetaLoss",
    "MetaTrainer",
    "MetaValidation",
    "RNNMLPRule",
    "ResidualRule",
    "SGDRule",
    "State",
    "StepContext",
    "TaskDataModule",
    "TruncatedBackprop",
    "TruncatedES",
    "UpdateRule",
    "VeLORule",
    "__version__",
    "available_rules",
    "load_card",
    "load_rule",
    "register_rule",
    "save_rule",
]
