"""Update rules: pure functions of tensors with learned weights."""

from lightning_lopt.moved import import_former_places
from lightning_lopt.rules.adafac_mlp import AdafacMLPRule
from lightning_lopt.rules.base import ROLES, RULES, Role, State, StepContext, UpdateRule, register_rule
from lightning_lopt.rules.celo import CeloRule
from lightning_lopt.rules.celo2 import Celo2Rule
from lightning_lopt.rules.celo2_base import Celo2BaseRule
from lightning_lopt.rules.contract.roles import role_of_shape, role_table, roles_of
from lightning_lopt.rules.hand_designed import AdamRule, SGDRule
from lightning_lopt.rules.lstm import LSTMRule
from lightning_lopt.rules.mlp import MLPRule
from lightning_lopt.rules.mu_adafac_mlp import MuAdafacMLPRule
from lightning_lopt.rules.muon import MuonRule
from lightning_lopt.rules.nn_adam import NNAdamRule
from lightning_lopt.rules.residual import ResidualRule
from lightning_lopt.rules.rnn_mlp import RNNMLPRule
from lightning_lopt.rules.schedule_free import ScheduleFreeAdamRule
from lightning_lopt.rules.velo import VeLORule

__all__ = [
    "ROLES",
    "RULES",
    "AdafacMLPRule",
    "AdamRule",
    "Celo2BaseRule",
    "Celo2Rule",
    "CeloRule",
    "LSTMRule",
    "MLPRule",
    "MuAdafacMLPRule",
    "MuonRule",
    "NNAdamRule",
    "RNNMLPRule",
    "ResidualRule",
    "Role",
    "SGDRule",
    "ScheduleFreeAdamRule",
    "State",
    "StepContext",
    "UpdateRule",
    "VeLORule",
    "register_rule",
    "role_of_shape",
    "role_table",
    "roles_of",
]

import_former_places("rules")
