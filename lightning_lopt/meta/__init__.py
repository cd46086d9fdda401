"""Meta-training: the unroll engine, estimators of the meta-gradient, and the outer loop."""

from lightning_lopt.meta.data import TaskDataModule, TaskMixture
from lightning_lopt.meta.estimators import PES, Estimate, EvolutionStrategies, FullES
from lightning_lopt.meta.inner import InnerRuns, inner_step, start_runs, unroll
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.meta.trainer import MetaTrainer

__all__ = [
    "PES",
    "Estimate",
    "EvolutionStrategies",
    "FullES",
    "InnerRuns",
    "MetaLoss",
    "MetaTrainer",
    "TaskDataModule",
    "TaskMixture",
    "inner_step",
    "start_runs",
    "unroll",
]
