"""What leaves the direction of the gradient as it is changes no run: constants added to a loss, the unit of a loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW

from lightning_lopt import LearnedOptimizer, load_rule

STEPS = 60


class AutoEncoder(nn.Module):
    """A variational one, small; its loss is a squared error and a divergence."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.decode = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))

    def loss(self, batch):
        mean, log_scale = self.encode(batch["x"]).chunk(2, -1)
        code = mean + log_scale.exp() * batch["noise"]
        divergence = 0.5 * (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum(-1).mean()
        return (self.decode(code) - batch["x"]).square().sum(-1).mean() + 0.1 * divergence


class Contrastive(nn.Module):
    """Two views of one example are near, those of others far."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

    def loss(self, batch):
        one, other = (F.normalize(self.embed(batch["x"] + shift), dim=-1) for shift in (0.0, batch["shift"]))
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


class Density(nn.Module):
    """The negative log-likelihood of a Gaussian given half of the entries, which falls below 0."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))

    def loss(self, batch):
        mean, log_scale = self.net(batch["x"][:, :4]).chunk(2, -1)
        return (0.5 * ((batch["x"][:, 4:] - mean) * (-log_scale).exp()).square() + log_scale).sum(-1).mean()


def base(model):
    return LearnedOptimizer(model.named_parameters(), "base", total_steps=STEPS)


def train(kind, change=lambda loss, step: loss, told=True, make=base):
    """Losses of a run of ``base`` that minimises ``change(loss, step)``, which it is ``told`` or not."""
    torch.manual_seed(0)
    mixing = torch.randn(3, 8)
    model = kind()
    optimizer = make(model)
    losses = []
    for step in range(STEPS):
        batch = {"x": torch.tanh(torch.randn(32, 3) @ mixing) + 0.05 * torch.randn(32, 8)}
        batch |= {"noise": torch.randn(32, 2), "shift": 0.2 * torch.randn(32, 8)}
        loss = model.loss(batch)
        optimizer.zero_grad()
        changed = change(loss, step)
        changed.backward()
        optimizer.step(**({"loss": changed.detach()} if told and make is base else {}))
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.fixture(scope="module", params=[AutoEncoder, Contrastive, Density], ids=lambda kind: kind.__name__)
def run(request):
    return request.param, train(request.param)


def test_it_learns(run):
    """From the loss before the first step by more than 0.5, and further than AdamW at the best of three rates."""
    kind, losses = run
    assert losses[-10:].mean() < losses[0] - 0.5
    others = [train(kind, make=lambda model, lr=lr: AdamW(model.parameters(), lr)) for lr in (3e-3, 1e-2, 3e-2)]
    assert losses[-10:].mean() < min(other[-10:].mean() for other in others)


def test_it_needs_no_loss(run):
    kind, losses = run
    assert not load_rule("base").needs_loss
    assert torch.equal(train(kind, told=False), losses)


@pytest.mark.parametrize(
    "constant", [-100.0, 1.0, *(pytest.param(constant, marks=pytest.mark.slow) for constant in (-1.0, 100.0))]
)
def test_a_constant_added_changes_nothing(run, constant):
    kind, losses = run
    assert torch.equal(train(kind, lambda loss, step: loss + constant), losses)


def test_a_first_loss_that_is_wrong_changes_nothing(run):
    kind, losses = run
    assert torch.equal(train(kind, lambda loss, step: loss + 1e6 * (step == 0)), losses)


@pytest.mark.parametrize("power", [-40, 40])  # 1e-12 and 1e12
def test_a_power_of_two_changes_nothing(run, power):
    kind, losses = run
    torch.testing.assert_close(train(kind, lambda loss, step: 2.0**power * loss), losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-12, 1e-10, 1e12])
def test_other_factors_change_digits_alone(run, factor):
    kind, losses = run
    scaled = train(kind, lambda loss, step: factor * loss)
    fall = losses[:3].mean() - losses[-10:].mean()
    assert abs(scaled[-10:].mean() - losses[-10:].mean()) < 0.05 * fall


def bandit(constant):
    """Mean reward of each step of REINFORCE on four arms; its loss is 0 in the mean."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = LearnedOptimizer(policy.named_parameters(), "base", total_steps=120)
    rewards = []
    for _ in range(120):
        context = F.one_hot(torch.randint(3, (64,)), 3).float()
        logits = policy(context)
        arm = torch.distributions.Categorical(logits=logits).sample()
        reward = (arm == context.argmax(-1)).float() + 0.5 * torch.randn(64)
        chosen = logits.log_softmax(-1).gather(-1, arm[:, None]).squeeze(-1)
        loss = -((reward - reward.mean()) * chosen).mean() + constant
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
        rewards.append(reward.mean())
    return torch.stack(rewards)


def test_a_loss_that_hovers_around_zero_is_no_hindrance():
    rewards = bandit(0.0)
    assert rewards[:5].mean() < 0.5
    assert rewards[-20:].mean() > 0.85  # 1 at best
    assert torch.equal(bandit(1.0), rewards)
