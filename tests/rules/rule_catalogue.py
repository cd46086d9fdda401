"""Every rule of the package, in every configuration worth a test: one line each, and it passes the whole contract."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lightning_lopt import (
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
    UpdateRule,
    VeLORule,
    load_rule,
)


@dataclass(frozen=True)
class Entry:
    """A rule's class, the arguments it is built with, and which of ``"loss"`` and ``"horizon"`` it reads.

    ``rests`` says whether a tensor that never had a gradient stays put, beside its weight decay.
    """

    build: Callable[..., UpdateRule]
    config: dict[str, Any] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    rests: bool = True

    def __str__(self) -> str:
        return "-".join([self.build.rule_name, *(f"{key}={value}" for key, value in self.config.items())])

    def rule(self, dtype: torch.dtype = torch.float64) -> UpdateRule:
        """The rule with θ moved off its start, so that no learned part is silent; the same on every call."""
        draws = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            rule = self.build(**self.config).to(dtype)
        with torch.no_grad():
            for value in rule.parameters():
                value.add_(0.1 * torch.randn(value.shape, generator=draws, dtype=dtype))
        return rule


LOSS, HORIZON = frozenset({"loss"}), frozenset({"horizon"})

SMALL = {"step_mult": 1e-6, "exp_mult": 1e-6}

CATALOGUE = [
    Entry(SGDRule),
    Entry(SGDRule, {"nesterov": True, "weight_decay": 0.01, "schedule": "cosine"}, HORIZON),
    Entry(AdamRule),
    Entry(AdamRule, {"betas": (0.0, 0.9), "weight_decay": 0.01, "schedule": "cosine"}, HORIZON),
    Entry(MuonRule),
    Entry(MuonRule, {"adjustment": "original", "weight_decay": 0.01, "schedule": "cosine"}, HORIZON),
    Entry(ScheduleFreeAdamRule, reads=HORIZON),
    Entry(ScheduleFreeAdamRule, {"warmup": 0.0, "weight_decay": 0.01}),
    Entry(ResidualRule, reads=LOSS | HORIZON),
    Entry(ResidualRule, {"direction": False}, LOSS | HORIZON),
    Entry(ResidualRule, {"controller": False, "orthogonalised": []}, HORIZON),
    Entry(ResidualRule, {"direction": False, "controller": False, "calibrated": True}, HORIZON),
    Entry(ResidualRule, {"orthogonalised": ["matrix", "embedding", "head"], "step_range": 2.0}, LOSS | HORIZON),
    Entry(
        ResidualRule,
        {
            "direction": False,
            "controller": False,
            "orthogonalised": [],
            "rotated": ["matrix", "embedding", "head"],
            "calibrated": True,
        },
        HORIZON,
    ),
    Entry(
        ResidualRule,
        {"controller": False, "orthogonalised": ["head"], "rotated": ["matrix"], "turn_every": 4},
        HORIZON,
    ),
    Entry(Celo2BaseRule, rests=False),
    Entry(Celo2BaseRule, {"exp_mult": 0.5, "bias_correction": True, "param_scale_mult": True}, rests=False),
    Entry(Celo2Rule, rests=False),
    Entry(Celo2Rule, {"adam_roles": ["head"], "orthogonalise": False, "weight_decay": 0.1}, rests=False),
    Entry(AdafacMLPRule, rests=False),
    Entry(
        AdafacMLPRule, {"hidden": 32, "exp_mult": 0.1, "momentum_decays": [0.9], "factored_decays": [0.9]}, rests=False
    ),
    Entry(MLPRule, rests=False),
    Entry(MLPRule, {"hidden": 8, "momentum_decays": [0.9], "exp_mult": 0.1}, rests=False),
    Entry(CeloRule, reads=LOSS | HORIZON, rests=False),
    Entry(CeloRule, {"phase": 1, "copies": 4, "lstm_hidden": 8, "exp_mult": 0.1}, LOSS | HORIZON, rests=False),
    # Shares count a hundredfold in each of three layers, so random θ steps far.
    Entry(VeLORule, {"lstm_hidden": 8, "copies": 4, **SMALL}, LOSS | HORIZON, rests=False),
    Entry(
        VeLORule,
        {"lstm_hidden": 8, "copies": 1, "short_loss_horizon": True, "forgets": True, **SMALL},
        LOSS | HORIZON,
        rests=False,
    ),
    Entry(RNNMLPRule, reads=LOSS, rests=False),
    Entry(RNNMLPRule, {"lstm_hidden": 8, "hidden": 8, "decays": [0.9], "exp_mult": 0.1}, LOSS, rests=False),
    Entry(LSTMRule, rests=False),
    Entry(LSTMRule, {"hidden": 4, "layers": 1, "log_range": 5.0}, rests=False),
    Entry(NNAdamRule),
    Entry(NNAdamRule, {"lr": 0.01, "lstm_hidden": 8, "output_scale": 0.1, "decay": 0.1}),
    Entry(MuAdafacMLPRule, {"base_width": 4, "hidden": 4}, rests=False),
]

ALSO_IN_EVERY_RUN = ("rotated",)  # arguments whose entries are tested in every run, too, since `base` has them


def cases() -> list[Any]:
    """The entries for ``pytest.mark.parametrize``: the first of each class in every run, others with ``-m slow``."""
    first = {entry.build: entry for entry in reversed(CATALOGUE)}
    return [
        pytest.param(
            entry,
            id=str(entry),
            marks=[]
            if entry is first[entry.build] or any(name in entry.config for name in ALSO_IN_EVERY_RUN)
            else pytest.mark.slow,
        )
        for entry in CATALOGUE
    ]


def builders() -> list[Any]:
    """:func:`cases` and ``base``, as functions that give the rule."""
    rules = [pytest.param(case.values[0].rule, id=case.id, marks=case.marks) for case in cases()]
    return [pytest.param(lambda: load_rule("base"), id="base"), *rules]
