"""The footprint of a rule, against what its equations say."""

import pytest
import torch
from rule_catalogue import cases

from lightning_lopt import AdafacMLPRule, AdamRule, Celo2Rule, LSTMRule, MLPRule, ResidualRule
from lightning_lopt.rules.contract.footprint import footprint, footprint_report


def test_state_bytes():
    rows, vector = (1000, 500), (1000,)
    assert footprint(AdamRule(), vector).state_bytes == 8 + 4 / 1000
    assert footprint(MLPRule(), rows).state_bytes == 24
    assert footprint(AdafacMLPRule(), rows).state_bytes == 16 + 12 * 1500 / 500_000
    assert footprint(AdafacMLPRule(), vector).state_bytes == 28
    assert footprint(LSTMRule(), vector).state_bytes == 320
    assert footprint(Celo2Rule(), vector).state_bytes == 8


def test_flops():
    """Two for each weight of a network that is applied to every entry."""
    assert footprint(AdamRule(), (1000,)).flops == 0
    assert footprint(MLPRule(), (1000, 1000)).flops == pytest.approx(2 * (8 * 32 + 32 * 32 + 32 * 2), rel=1e-3)
    assert footprint(AdafacMLPRule(), (1000, 1000)).flops == pytest.approx(2 * (16 * 4 + 4 * 4 + 4 * 2), rel=0.01)
    layers = 4 * 20 * (2 + 20) + 4 * 20 * (20 + 20) + 20
    assert footprint(LSTMRule(), (1000,)).flops == 2 * layers


def test_newton_schulz_counts():
    """Five steps of 2 (2 r² n + r³) on an r x n matrix."""
    plain = ResidualRule(direction=False, controller=False, orthogonalised=[])
    rule = ResidualRule(direction=False, controller=False)
    assert footprint(rule, (16, 64)).flops - footprint(plain, (16, 64)).flops == 5 * 2 * (2 * 16**2 * 64 + 16**3) / (
        16 * 64
    )


@pytest.mark.parametrize("every", [1, 8])
def test_turning_the_eigenbases_counts_as_often_as_it_is_done(every):
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"], turn_every=every)
    assert footprint(rule, (64, 64)).flops == 64 * (12 + 36 / every)


@pytest.mark.parametrize("entry", cases())
def test_report(entry):
    """For every rule, and without a change to it."""
    rule = entry.rule(torch.float32)
    text = footprint_report(rule)
    assert f"meta-parameters: {sum(value.numel() for value in rule.parameters())}\n" in text
    assert {what for what in ("loss", "horizon") if f"the {what}" in text.splitlines()[-1]} == entry.reads
    assert not any(value.is_meta for value in rule.parameters())
