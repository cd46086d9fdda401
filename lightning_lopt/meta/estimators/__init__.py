"""Estimators of the meta-gradient, one idea per file, behind one interface."""

from lightning_lopt.meta.estimators.base import Estimate, Estimator
from lightning_lopt.meta.estimators.evolution import EvolutionStrategies
from lightning_lopt.meta.estimators.full_es import FullES
from lightning_lopt.meta.estimators.noise_reuse import NRES, ESSingle
from lightning_lopt.meta.estimators.pes import PES
from lightning_lopt.meta.estimators.truncated_backprop import TruncatedBackprop
from lightning_lopt.meta.estimators.truncated_es import TruncatedES

__all__ = [
    "NRES",
    "PES",
    "ESSingle",
    "Estimate",
    "Estimator",
    "EvolutionStrategies",
    "FullES",
    "TruncatedBackprop",
    "TruncatedES",
]
