"""Meta-training: the unroll engine, estimators of the meta-gradient, and the outer loop."""

from lightning_lopt.meta import estimators
from lightning_lopt.meta.data import TaskDataModule, TaskMixture
from lightning_lopt.meta.engine import Compiled, Eager, Execution, Recorded
from lightning_lopt.meta.engine.step import inner_step
from lightning_lopt.meta.estimators import *  # noqa: F403
from lightning_lopt.meta.horizons import Horizons
from lightning_lopt.meta.objective import MetaLoss
from lightning_lopt.meta.runs import InnerRuns, start_runs
from lightning_lopt.meta.trainer import MetaTrainer
from lightning_lopt.meta.unroll import unroll

__all__ = [
    "Compiled",
    "Eager",
    "Execution",
    "Horizons",
    "InnerRuns",
    "MetaLoss",
    "MetaTrainer",
    "Recorded",
    "TaskDataModule",
    "TaskMixture",
    "inner_step",
    "start_runs",
    "unroll",
]
__all__ += estimators.__all__
