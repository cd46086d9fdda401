"""µP: steps by role and width, and layers whose outputs change alike whatever the width."""

import pytest
import torch
from torch import nn

from lightning_lopt import AdafacMLPRule, LearnedOptimizer, MuAdafacMLPRule, StepContext


def trained(build, **arguments):
    torch.manual_seed(0)
    rule = build(hidden=8, **arguments)
    with torch.no_grad():
        for name, value in rule.named_parameters():
            if not name.endswith("offsets") and not name.endswith("offset"):
                value.add_(0.2 * torch.randn_like(value))
    return rule


@torch.no_grad()
@pytest.mark.parametrize("matrix", ["flat", "stored"])
def test_steps_are_adafac_mlps_times_base_width_over_inputs(matrix):
    """Also its weight decay. Tensors are stored (out, in, h, w), or for the reference (h, w, in, out)."""
    shapes = {
        "hidden": (5, 64),
        "head": (3, 32),
        "conv": (6, 40, 3, 3),
        "narrow": (8, 2),
        "table": (9, 64),
        "bias": (64,),
    }
    factors = {
        "hidden": 0.25,
        "head": 0.5,
        "conv": 0.4 if matrix == "stored" else 0.4 / 9,
        "narrow": 1.0,
        "table": 1.0,
        "bias": 1.0,
    }
    roles = {"head": "head", "table": "embedding", "bias": "matrix"}
    turn = (lambda x: x) if matrix == "flat" else (lambda x: x.permute(*range(2, x.ndim), 1, 0) if x.ndim > 1 else x)
    params, grads = ({name: turn(torch.randn(shape)) for name, shape in shapes.items()} for _ in range(2))
    at = StepContext(torch.tensor(3.0), torch.tensor(9.0), roles=roles, weight_decay=dict.fromkeys(shapes, 0.1))
    mu, plain = trained(MuAdafacMLPRule, base_width=16, matrix=matrix), trained(AdafacMLPRule, matrix=matrix)
    ours, _ = mu(params, grads, mu.init_state(params, roles), at)
    theirs, _ = plain(params, grads, plain.init_state(params, roles), at)
    for name, factor in factors.items():
        torch.testing.assert_close(ours[name], factor * theirs[name])


def change_of_outputs(rule, width, steps=3):
    """How far a few steps move what the second hidden layer puts out, root mean square."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    optimizer = LearnedOptimizer(net, rule)
    before = net[:3](x).detach()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net[:3](x) - before).square().mean().sqrt())


def test_outputs_change_alike_whatever_the_width():
    """The coordinate check: from width 32 to 1024, without µP they change more and more."""
    mu, plain = trained(MuAdafacMLPRule, base_width=32), trained(AdafacMLPRule)
    narrow, wide = change_of_outputs(mu, 32), change_of_outputs(mu, 1024)
    assert 0.5 < wide / narrow < 2
    assert change_of_outputs(plain, 1024) / change_of_outputs(plain, 32) > 8
