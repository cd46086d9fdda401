"""Learned optimizers for PyTorch Lightning."""

import typing as _typing

from lightning_lopt.__about__ import __version__
from lightning_lopt._lazy import lazily as _lazily
from lightning_lopt.moved import find_former_places as _find_former_places

if _typing.TYPE_CHECKING:
    from lightning_lopt.assessment import Assessment, assess
    from lightning_lopt.callbacks import LearnedOptimizerAdapter, MetaTraining, MetaValidation, OnlineMetaTraining
    from lightning_lopt.interop import LearnedTrainerMixin
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
    from lightning_lopt.optim import LearnedOptimizer, LossGuard
    from lightning_lopt.rules import (
        AdafacMLPRule,
        AdamRule,
        Celo2BaseRule,
        Celo2Rule,
        CeloRule,
        LSTMRule,
        MLPRule,
        MuAdafacMLPRule,
        MuonRule,
        NNAdamRule,
        ResidualRule,
        RNNMLPRule,
        ScheduleFreeAdamRule,
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
    "Assessment",
    "Card",
    "Celo2BaseRule",
    "Celo2Rule",
    "CeloRule",
    "ESSingle",
    "FullES",
    "Horizons",
    "LSTMRule",
    "LearnedOptimizer",
    "LearnedOptimizerAdapter",
    "LearnedTrainerMixin",
    "LightningTask",
    "LossGuard",
    "MLPRule",
    "MetaLoss",
    "MetaTrainer",
    "MetaTraining",
    "MetaValidation",
    "MuAdafacMLPRule",
    "MuonRule",
    "NNAdamRule",
    "OnlineMetaTraining",
    "RNNMLPRule",
    "ResidualRule",
    "SGDRule",
    "ScheduleFreeAdamRule",
    "State",
    "StepContext",
    "TaskDataModule",
    "TruncatedBackprop",
    "TruncatedES",
    "UpdateRule",
    "VeLORule",
    "__version__",
    "assess",
    "available_rules",
    "load_card",
    "load_rule",
    "register_rule",
    "save_rule",
]

_find_former_places()

# Submodules with a short import time come first: an optimizer and its adapter need only the first three.
__getattr__ = _lazily(
    __name__, ("rules", "optim", "callbacks", "io", "interop", "tasks", "meta", "assessment", "evaluation")
)
