"""Pilots against a plain loop over one θ at a time, and against a closed form."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_lopt import AdamRule, ResidualRule, SGDRule
from lightning_lopt.meta.pilot import RunSnapshot, pilot_losses
from lightning_lopt.rules import StepContext
from lightning_lopt.tasks.base import Task

ROLES = {"0.weight": "matrix", "0.bias": "vector", "2.weight": "head", "2.bias": "vector"}


class Regression(Task):
    """A small network in float64."""

    def __init__(self):
        self.roles = ROLES
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def init(self, generator):
        return {name: value.detach().clone() for name, value in self.net.named_parameters()}

    def draw(self, generator, *lead, split="train"):
        return {"x": torch.randn(*lead, 8, 3, generator=generator, dtype=torch.float64)}

    def full_batch(self, split):
        raise NotImplementedError

    def loss(self, params, batch):
        return (functional_call(self.net, params, (batch["x"],)) - batch["x"].prod(-1, keepdim=True)).square().mean()


def plain_loop(rule, task, snapshot, windows, held_out):
    """One pilot with autograd and torch's own clipping."""
    params = {name: value.clone() for name, value in snapshot.params.items()}
    state = snapshot.state
    for index, window in enumerate(windows):
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss = sum(task.loss(leaves, batch) for batch in window) / len(window)
        loss.backward()
        if snapshot.clip_norm is not None:
            nn.utils.clip_grad_norm_(leaves.values(), snapshot.clip_norm)
        if snapshot.clip_value is not None:
            nn.utils.clip_grad_value_(leaves.values(), snapshot.clip_value)
        step = snapshot.step + (snapshot.total_steps - snapshot.step) * index / len(windows)
        context = StepContext(
            torch.tensor(step), torch.tensor(float(snapshot.total_steps)), loss.detach(), ROLES, snapshot.weight_decay
        )
        grads = {name: leaf.grad for name, leaf in leaves.items()}
        with torch.no_grad():
            updates, state = rule(params, grads, state, context)
            params = {name: value + snapshot.lr.get(name, 1.0) * updates[name] for name, value in params.items()}
    with torch.no_grad():
        return torch.stack([task.loss(params, batch) for batch in held_out]).mean()


@pytest.mark.parametrize("rule", [AdamRule(0.01, schedule="cosine"), ResidualRule()], ids=["adam", "residual"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"clip_norm": 0.1}, {"clip_value": 0.01}, {"lr": {"0.weight": 0.5}, "weight_decay": {"0.bias": 0.1}}],
    ids=["plain", "clip-norm", "clip-value", "groups"],
)
@pytest.mark.parametrize("accumulated", [1, 3])
def test_equals_a_plain_loop(rule, settings, accumulated):
    rule, task, draws = rule.double(), Regression(), torch.Generator().manual_seed(1)
    params = task.init(draws)
    state = rule.init_state(params, ROLES)
    for step in range(3):  # somewhere on the way, so that the state matters
        grads, loss, _ = task.gradient(params, task.batch(draws))
        updates, state = rule(
            params, grads, state, StepContext(torch.tensor(float(step)), torch.tensor(40.0), loss, ROLES)
        )
        params = {name: (value + updates[name]).detach() for name, value in params.items()}
    snapshot = RunSnapshot(params, state, ROLES, 3, 40, **settings)
    windows = [[task.batch(draws) for _ in range(accumulated)] for _ in range(5)]
    held_out = [task.batch(draws) for _ in range(3)]
    name = "log_lr" if isinstance(rule, AdamRule) else "constants.log_step_size"
    entry = dict(rule.named_parameters())[name].detach()
    particles = {name: torch.stack([entry - 0.5, entry, entry + 0.5])}
    losses = pilot_losses(rule, particles, task, snapshot, windows, held_out)
    for index in range(3):
        with torch.no_grad():
            dict(rule.named_parameters())[name].copy_(particles[name][index])
        torch.testing.assert_close(
            losses[index], plain_loop(rule, task, snapshot, windows, held_out), rtol=1e-9, atol=0
        )
    assert len({float(loss) for loss in losses}) == 3


class Parabola(Regression):
    def __init__(self):
        self.roles = {"w": "vector"}

    def loss(self, params, batch):
        return 0.5 * params["w"].square().sum()


def test_closed_form_and_divergence():
    """Gradient descent on w²/2: after K steps at rate η, (1 - η)^2K of the loss is left."""
    task, rule = Parabola(), SGDRule(0.1, momentum=0.0)
    params = {"w": torch.ones(1)}
    snapshot = RunSnapshot(params, rule.init_state(params, task.roles), task.roles, 0, None)
    rates = torch.tensor([0.1, 0.5, 1e30])
    losses = pilot_losses(rule, {"log_lr": rates.log()}, task, snapshot, [[{}]] * 4, [{}])
    torch.testing.assert_close(losses[:2], 0.5 * (1 - rates[:2]) ** 8)
    assert not losses[2].isfinite()
