"""The number of epochs that the adapter tells the rule, in every way a Trainer can be told when to stop."""

import pytest
from small_fits import BATCHES, RULE, ManualModule, Module, fit, stream

from lightning_lopt import LearnedOptimizer

CASES = {
    "epochs": ({}, 2.0),
    "accumulation": ({"accumulate_grad_batches": 4}, 2.0),
    "max_steps": ({"epochs": -1, "max_steps": 2 * BATCHES + 3}, 2.5),
    "max_steps with accumulation": ({"epochs": -1, "max_steps": 3, "accumulate_grad_batches": 4}, 1.5),
    "epochs before max_steps": ({"max_steps": 100}, 2.0),
    "half of the batches": ({"limit_train_batches": 0.5}, 1.0),
    "the same two batches": ({"overfit_batches": 2}, 2.0),
    "stream": ({"data": stream, "max_steps": 5}, None),
    "stream with a limit": ({"data": stream, "limit_train_batches": 4}, 2.0),
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case)
        for case in CASES
        for kind in (Module, ManualModule)
        if kind is Module or "accumulation" not in case  # manual optimization accumulates by itself
    ],
)
def test_the_epochs_are_those_of_the_fit(kind, case):
    settings, epochs = CASES[case]
    settings = {key: value() if callable(value) else value for key, value in settings.items()}
    assert fit(kind(), **settings).optimizers[0].epochs == epochs


def test_the_users_number_wins():
    given = Module(lambda module: LearnedOptimizer(module, RULE, epochs=9))
    assert fit(given).optimizers[0].epochs == 9.0
