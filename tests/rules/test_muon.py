"""Muon beside AdamW, against the optimizers of torch."""

import math

import pytest
import torch

from lightning_lopt import MuonRule, StepContext

SHAPES = {"wide": (6, 10), "tall": (12, 5), "conv": (8, 3, 3, 3), "bias": (8,), "table": (7, 4), "head": (3, 6)}
ROLES = {"table": "embedding", "head": "head"}
HIDDEN = ("wide", "tall", "conv")
STEPS = 50

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")


def drawn(seed):
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in SHAPES.items()}


def ours(rule):
    params = drawn(0)
    with torch.no_grad():
        rule.double().log_lr.fill_(math.log(rule.initial_lr))  # in float64
    state = rule.init_state(params, ROLES)
    for step in range(STEPS):
        context = StepContext(torch.tensor(step).double(), torch.tensor(STEPS).double(), roles=ROLES)
        updates, state = rule(params, drawn(step + 1), state, context)
        params = {name: params[name] + updates[name] for name in params}
    return params


def theirs(lr, weight_decay, adjustment):
    params = {name: value.flatten(1) if name == "conv" else value for name, value in drawn(0).items()}
    hidden = [params[name] for name in HIDDEN]
    rest = [value for name, value in params.items() if name not in HIDDEN]
    optimizers = [
        torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn=adjustment),
        torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay),
    ]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(one, STEPS) for one in optimizers]
    for step in range(STEPS):
        for name, grad in drawn(step + 1).items():
            params[name].grad = grad.reshape(params[name].shape)
        for one in (*optimizers, *schedulers):
            one.step()
    return {name: value.reshape(SHAPES[name]) for name, value in params.items()}


@needs_muon
@pytest.mark.parametrize("adjustment", ["match_rms_adamw", "original"])
def test_equals_torch_in_exact_arithmetic(adjustment, monkeypatch):
    """Torch rounds its products to bfloat16; without that, all digits agree after 50 steps."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    rule = MuonRule(0.02, weight_decay=0.1, adjustment=adjustment, schedule="cosine")
    expected = theirs(0.02, 0.1, adjustment)
    for name, value in ours(rule).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


@needs_muon
def test_equals_torch_as_it_is_up_to_bfloat16():
    start, expected = drawn(0), theirs(0.02, 0.0, "match_rms_adamw")
    for name, value in ours(MuonRule(0.02, schedule="cosine")).items():
        way = (expected[name] - start[name]).norm()
        assert (value - expected[name]).norm() < 0.02 * way, name


def test_steps_have_the_rms_of_adamws():
    """On random gradients 0.2 √max(rows, columns) times an orthogonal matrix has an RMS of about 0.2."""
    rule, params = MuonRule(1.0), {name: value.float() for name, value in drawn(0).items()}
    grads = {name: value.float() for name, value in drawn(1).items()}
    context = StepContext(torch.tensor(0.0), torch.tensor(1.0), roles=ROLES)
    updates, _ = rule(params, grads, rule.init_state(params, ROLES), context)
    for name in HIDDEN:
        assert 0.15 < float(updates[name].detach().square().mean().sqrt()) < 0.25, name


def test_unknown_adjustment():
    with pytest.raises(ValueError, match="adjustment must be 'match_rms_adamw' or 'original', got 'none'"):
        MuonRule(adjustment="none")
