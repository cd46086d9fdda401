"""Arguments out of range, names taken and roles unknown are refused with a sentence."""

import pytest

from lightning_lopt import (
    AdafacMLPRule,
    AdamRule,
    Celo2BaseRule,
    Celo2Rule,
    CeloRule,
    LSTMRule,
    MLPRule,
    MuAdafacMLPRule,
    NNAdamRule,
    ResidualRule,
    RNNMLPRule,
    SGDRule,
    UpdateRule,
    VeLORule,
    register_rule,
)
from lightning_lopt.rules import RULES

BAD = [
    (SGDRule, {"lr": 0.0}, "lr must be a positive number"),
    (SGDRule, {"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
    (SGDRule, {"weight_decay": -1.0}, "weight_decay must be a number >= 0"),
    (SGDRule, {"schedule": "linear"}, "'constant' or 'cosine'"),
    (AdamRule, {"lr": float("inf")}, "lr must be a positive number"),
    (AdamRule, {"betas": (0.9, 1.5)}, r"betas\[1\] must lie in"),
    (AdamRule, {"eps": -1e-8}, "eps must be a positive number"),
    (AdamRule, {"weight_decay": float("nan")}, "weight_decay must be a number >= 0"),
    (ResidualRule, {"direction_hidden": 0}, "must be at least 1"),
    (ResidualRule, {"controller_hidden": 0}, "must be at least 1"),
    (ResidualRule, {"step_range": 1.0}, "step_range must be a number above 1"),
    (ResidualRule, {"step_size": 0.0}, "step_size must be a positive number"),
    (ResidualRule, {"weight_decay": -0.1}, "weight_decay must be a positive number"),
    (ResidualRule, {"orthogonalised": ["matrices"]}, "orthogonalised has role 'matrices'; use one of 'matrix'"),
    (Celo2BaseRule, {"hidden": 0}, "hidden must be at least 1"),
    (Celo2BaseRule, {"step_mult": -1.0}, "step_mult must be a number >= 0"),
    (Celo2BaseRule, {"exp_mult": float("nan")}, "exp_mult must be a number, got nan"),
    (Celo2BaseRule, {"momentum_decays": [0.9]}, "equally many"),
    (Celo2BaseRule, {"second_moment_decay": 1.0}, r"all decays lie in \[0, 1\)"),
    (Celo2BaseRule, {"matrix": "first_two"}, "'flat' or 'last_two'"),
    (Celo2Rule, {"adam_mult": 0.0}, "adam_mult must be a positive number"),
    (Celo2Rule, {"adam_betas": [0.9]}, "adam_betas must be two numbers"),
    (AdafacMLPRule, {"hidden": 0}, "hidden must be at least 1"),
    (AdafacMLPRule, {"second_moment_decay": -0.1}, r"all decays lie in \[0, 1\)"),
    (AdafacMLPRule, {"matrix": "last_two"}, "matrix must be 'flat' or 'stored', got 'last_two'"),
    (MuAdafacMLPRule, {"base_width": 0}, "base_width must be at least 1"),
    (MLPRule, {"momentum_decays": []}, r"momentum_decays must be numbers in \[0, 1\), at least one"),
    (MLPRule, {"exp_mult": float("inf")}, "exp_mult must be a number, got inf"),
    (CeloRule, {"phase": 3}, "phase must be 1 or 2, got 3"),
    (CeloRule, {"copies": 0}, "copies must be at least 1"),
    (VeLORule, {"lstm_hidden": -1}, "lstm_hidden must be at least 1"),
    (VeLORule, {"factored_decays": [0.9]}, "equally many"),
    (RNNMLPRule, {"decays": [1.0]}, r"decays must be numbers in \[0, 1\), at least one"),
    (RNNMLPRule, {"matrix": "last_two"}, "matrix must be 'flat' or 'stored'"),
    (LSTMRule, {"layers": 0}, "layers must be at least 1"),
    (LSTMRule, {"log_range": 0.0}, r"log_range must be a number in \(0, 80\]"),
    (NNAdamRule, {"lr": 0.0}, r"lr must lie in \[1e-8, 1e3\]"),
    (NNAdamRule, {"beta2": 1.0}, r"betas in \[0, 0.99995\]"),
    (NNAdamRule, {"decay": -1.0}, "decay must be a number >= 0"),
    (Celo2Rule, {"adam_roles": ["bias"]}, "adam_roles has role 'bias'; use one of 'matrix'"),
]


@pytest.mark.parametrize(("rule", "arguments", "message"), BAD, ids=lambda part: getattr(part, "rule_name", None))
def test_arguments_out_of_range(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(**arguments)


def test_a_rule_name_belongs_to_one_class(monkeypatch):
    monkeypatch.setattr("lightning_lopt.rules.base.RULES", dict(RULES))
    with pytest.raises(ValueError, match="'adam' is taken by AdamRule"):

        @register_rule("adam")
        class Other(UpdateRule):
            pass

    register_rule("adam")(AdamRule)  # the same class again, as when a module is reloaded


def test_an_update_rule_alone_is_an_interface():
    with pytest.raises(TypeError, match="abstract"):
        UpdateRule()
