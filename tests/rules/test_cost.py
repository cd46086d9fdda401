"""What a rule costs, against what its equations say."""

import pytest
import torch
from rule_catalogue import CATALOGUE

from lightning_lopt import AdafacMLPRule, AdamRule, Celo2Rule, LSTMRule, MLPRule, ResidualRule
from lightning_lopt.rules.contract.footprint import cost, report


def test_state_bytes():
    rows, vector = (1000, 500), (1000,)
    assert cost(AdamRule(), vector).state_bytes == 8 + 4 / 1000
    assert cost(MLPRule(), rows).state_bytes == 24
    assert cost(AdafacMLPRule(), rows).state_bytes == 16 + 12 * 1500 / 500_000
    assert cost(AdafacMLPRule(), vector).state_bytes == 28
    assert cost(LSTMRule(), vector).state_bytes == 320
    assert cost(Celo2Rule(), vector).state_bytes == 8


def test_flops():
    """Two for each weight of a network that is applied to every entry."""
    assert cost(AdamRule(), (1000,)).flops == 0
    assert cost(MLPRule(), (1000, 1000)).flops == pytest.approx(2 * (8 * 32 + 32 * 32 + 32 * 2), rel=1e-3)
    assert cost(AdafacMLPRule(), (1000, 1000)).flops == pytest.approx(2 * (16 * 4 + 4 * 4 + 4 * 2), rel=0.01)
    layers = 4 * 20 * (2 + 20) + 4 * 20 * (20 + 20) + 20
    assert cost(LSTMRule(), (1000,)).flops == 2 * layers


def test_newton_schulz_counts():
    """Five steps of 2 (2 r² n + r³) on an r x n matrix."""
    plain = ResidualRule(direction=False, controller=False, orthogonalised=[])
    rule = ResidualRule(direction=False, controller=False)
    assert cost(rule, (16, 64)).flops - cost(plain, (16, 64)).flops == 5 * 2 * (2 * 16**2 * 64 + 16**3) / (16 * 64)


@pytest.mark.parametrize("every", [1, 8])
def test_turning_the_eigenbases_counts_as_often_as_it_is_done(every):
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"], turn_every=every)
    assert cost(rule, (64, 64)).flops == 64 * (12 + 36 / every)


@pytest.mark.parametrize("entry", CATALOGUE, ids=str)
def test_report(entry):
    """For every rule, and without a change to it."""
    rule = entry.rule(torch.float32)
    text = report(rule)
    assert f"meta-parameters: {sum(value.numel() for value in rule.parameters())}\n" in text
    assert {what for what in ("loss", "horizon") if f"the {what}" in text.splitlines()[-1]} == entry.reads
    assert not any(value.is_meta for value in rule.parameters())
