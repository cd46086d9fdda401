"""Modules that moved can still be imported from their former places."""

from importlib import import_module

import pytest

from lightning_lopt.rules.moved import MOVED


@pytest.mark.parametrize("before", MOVED)
def test_former_places(before):
    assert import_module(f"lightning_lopt.rules.{before}") is import_module(f"lightning_lopt.rules.{MOVED[before]}")


def test_names_are_found_there():
    from lightning_lopt.rules.accumulators import average, constants, rates
    from lightning_lopt.rules.entry_network import EntryNetwork, apply_network
    from lightning_lopt.rules.mlp import MomentumFeatures

    assert all(map(callable, (average, constants, rates, EntryNetwork, apply_network, MomentumFeatures)))
