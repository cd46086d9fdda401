"""Meta-training: the unroll engine, estimators of the meta-gradient, and the outer loop."""

from lightning_lopt.meta.data import TaskDataModule, TaskMixture
from lightning_lopt.meta.estimators import (
    NRES,
    PES,
    ESSingle,
    Estimate,
    Estimator,
    EvolutionStrategies,
    FullES,
    TruncatedBackprop,
    TruncatedES,
)
from lightning_lopt.meta.horizons import Horizons
from lightning_lopt.meta.inner import InnerRuns, inner_step, start_runs, unroll
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.meta.trainer import MetaTrainer

__all__ = [
    "NRES",
    "PES",
    "ESSingle",
    "Estimate",
    "Estimator",
    "EvolutionStrategies",
    "FullES",
    "Horizons",
    "InnerRuns",
    "MetaLoss",
    "MetaTrainer",
    "TaskDataModule",
    "TaskMixture",
    "TruncatedBackprop",
    "TruncatedES",
    "inner_step",
    "start_runs",
    "unroll",
]
