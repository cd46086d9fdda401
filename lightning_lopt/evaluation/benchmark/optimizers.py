"""The optimizers of a benchmark: learned rules, and hand-designed and learned optimizers for comparison."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.step_cost import MuonWithAdamW, ParamLeaves, Step, learned, params_of
from lightning_lopt.extras import how_to_install
from lightning_lopt.io import load_rule
from lightning_lopt.rules.base import RULES, UpdateRule

LossClosure = Callable[[], Tensor]
"""A function that returns the loss of the next step, 0-dim."""
REFERENCE = "adamw_foreach"
IN_PEERS = {"pytorch_optimizer"}
"""Packages of the extra ``peers``."""


class NotAvailableError(Exception):
    """An optimizer is not available in this installation; the message gives the reason."""


@dataclass(frozen=True)
class Contender:
    """An optimizer that takes part in a benchmark.

    Attributes:
        build: function of the trained tensors and of a function for the loss. It makes a new optimizer, and returns a
            function for one step.
        period: number of steps after which the work of a step repeats.
        is_rule: whether the optimizer is a rule of this package.
    """

    build: Callable[[ParamLeaves, LossClosure], Step]
    period: int = 1
    is_rule: bool = False


def _muon(leaves: ParamLeaves, loss: LossClosure) -> Step:
    if not hasattr(torch.optim, "Muon"):
        raise NotAvailableError(f"torch {torch.__version__} has no Muon; it comes with 2.9")
    return MuonWithAdamW(leaves)


def _soap_of_heavyball(leaves: ParamLeaves, loss: LossClosure) -> Step:
    module = _imported("heavyball")
    if not leaves[0][1].is_cuda:
        module.utils.compile_mode = None  # heavyball's default tunes kernels for minutes
    optimizer = module.SOAP(params_of(leaves))
    optimizer.consume_grad = False  # otherwise SOAP deletes the gradients, which other optimizers need too
    step: Step = optimizer.step
    return step


def _soap_of_pytorch_optimizer(leaves: ParamLeaves, loss: LossClosure) -> Step:
    optimizer: torch.optim.Optimizer = _imported("pytorch_optimizer").SOAP(params_of(leaves))
    return optimizer.step


def _pylo(leaves: ParamLeaves, loss: LossClosure) -> Step:
    """PyLO's small_fc_lopt, with PyLO's CUDA kernels if they were built, otherwise in plain PyTorch."""
    module = _imported("pylo.optim")
    on_cuda = leaves[0][1].is_cuda and hasattr(module, "AdafacLO_CUDA")
    optimizer = (module.AdafacLO_CUDA if on_cuda else module.AdafacLO_naive)(params_of(leaves))
    return lambda: optimizer.step(loss())


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:  # on an unsupported machine, the import of a package may raise any exception
        reason = f"import {package} failed ({type(error).__name__}: {error})"
        is_missing = isinstance(error, ModuleNotFoundError) and package in IN_PEERS
        raise NotAvailableError(f"{reason}; {how_to_install('peers')}" if is_missing else reason) from error


PEERS: dict[str, Contender] = {
    REFERENCE: Contender(lambda leaves, _: torch.optim.AdamW(params_of(leaves), foreach=True).step),
    "adamw_fused": Contender(lambda leaves, _: torch.optim.AdamW(params_of(leaves), fused=True).step),
    "muon": Contender(_muon),
    "soap_heavyball": Contender(_soap_of_heavyball, period=10),
    "soap_pytorch_optimizer": Contender(_soap_of_pytorch_optimizer, period=10),
    "pylo": Contender(_pylo),
}
"""Optimizers of torch and of other packages, with their default settings."""


def rule_named(name: str) -> UpdateRule:
    """A rule with embedded weights, or a new rule of a class in :data:`~lightning_lopt.rules.base.RULES`.

    Raises:
        ValueError: if there is no rule of that name.
    """
    return RULES[name]() if name in RULES else load_rule(name)


def rule_contender(rule: UpdateRule, total_steps: int, **options: object) -> Contender:
    """A rule in :class:`~lightning_lopt.LearnedOptimizer`, as an optimizer of a benchmark.

    Args:
        rule: the rule.
        total_steps: planned steps.
        options: further arguments of ``LearnedOptimizer``.
    """
    return Contender(
        lambda leaves, loss: learned(leaves, rule, loss, total_steps, **options), period=rule.period, is_rule=True
    )
