"""Rounding does not grow: the same gradients in float32 and float64, null directions, equal variances, caution."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule, StepContext
from lightning_lopt.rules.residual_parts.eigenbasis import turned


def perceptron(inputs):
    return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))


class Tokens(nn.Module):
    """Attention over tokens of which the second half never occurs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.head(self.block(self.embedding(x))).mean(1)


def dead_inputs():
    x = torch.randn(128, 40).double()
    x[:, :15] = 0
    return perceptron(40), x, x[:, -10:].argmax(1), 128


def duplicated_inputs_in_small_batches():
    x = torch.randn(128, 20).double()
    return perceptron(40), torch.cat([x, x], 1), x[:, :10].argmax(1), 6


def unused_tokens():
    x = torch.randint(20, (64, 8))
    return Tokens(), x, x.amax(1), 16


def flat(model):
    return torch.cat([param.detach().double().flatten() for param in model.parameters()])


@pytest.mark.parametrize("problem", [dead_inputs, duplicated_inputs_in_small_batches, unused_tokens])
def test_float32_follows_float64(problem):
    """30 steps by the same gradients: apart by less than a thousandth of the move (1e-2 to 0.2 without care)."""
    torch.manual_seed(0)
    model, x, y, batch = problem()
    model = model.double()
    copied, start = copy.deepcopy(model).float(), flat(model)
    optimizers = [LearnedOptimizer(m, "base", total_steps=300) for m in (model, copied)]
    for _ in range(30):
        chosen = torch.randperm(len(x))[:batch]
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        model.zero_grad()
        loss.backward()
        for param, other in zip(model.parameters(), copied.parameters(), strict=True):
            other.grad = param.grad.float()
        for optimizer in optimizers:
            optimizer.step(loss=loss.detach().float())
    move = flat(model) - start
    assert float((flat(copied) - flat(model)).norm() / move.norm()) < 1e-3


def test_gradients_of_rank_one_give_steps_of_rank_one():
    """The bases find the one direction; all others hold rounding alone, which must not become a step."""
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"])
    torch.manual_seed(0)
    params, direction = {"w": torch.randn(24, 16)}, torch.outer(torch.randn(24), torch.randn(16))
    state = rule.init_state(params, {"w": "matrix"})
    for step in range(400):
        context = StepContext(torch.tensor(float(step)), torch.tensor(500.0), roles={"w": "matrix"})
        grads = {"w": torch.randn(()) * direction}
        with torch.no_grad():
            updates, state = rule({"w": torch.zeros(24, 16)}, grads, state, context)  # zeros: no weight decay
    strengths = torch.linalg.svdvals(updates["w"])
    assert strengths[1] < 2e-3 * strengths[0]  # 0.9 where rounding is normalised to full size
    cosine = (updates["w"] * direction).sum() / (updates["w"].norm() * direction.norm())
    assert float(cosine.abs()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("variances", [[1.0] * 8, [1.0] * 4 + [0.0] * 4, [1.0, 1e-3, 1e-6] + [1e-9] * 5])
def test_bases_do_not_turn_by_rounding(variances):
    """Couplings of 1e-7 of the largest variance, between equal, null and different variances."""
    torch.manual_seed(0)
    basis = torch.eye(8)
    for _ in range(300):
        noise = 1e-7 * torch.randn(8, 8)
        basis = turned(basis, torch.diag(torch.tensor(variances)) + noise + noise.mT)
    assert float((basis - torch.eye(8)).abs().max()) < 0.01


@pytest.mark.parametrize("noise", [-1e-6, 0.0, 1e-6])
def test_equal_variances_have_a_preferred_place(noise):
    """Two coupled axes of equal variance, as of a duplicated input: the earlier one takes all, always."""
    basis = torch.eye(2).double()
    for _ in range(30):
        basis = turned(basis, torch.tensor([[1.0 + noise, 1.0], [1.0, 1.0 - noise]]).double())
    expected = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / 2**0.5
    torch.testing.assert_close(basis, expected, rtol=0, atol=1e-5)


def test_caution_does_not_jump_where_a_gradient_changes_its_sign():
    """An entry without a gradient in this step, but with a momentum: rounding of either sign gives the same step."""
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[]).double()
    with torch.no_grad():
        rule.constants.caution.fill_(0.7)

    def last_update(entry):
        params, steps = {"w": torch.ones(3).double()}, []
        state = rule.init_state(params, {})
        for step, first in enumerate((1.0, 1.0, entry)):
            grads = {"w": torch.tensor([first, 1.0, -1.0]).double()}
            context = StepContext(torch.tensor(float(step)), torch.tensor(100.0))
            with torch.no_grad():
                updates, state = rule(params, grads, state, context)
            steps.append(updates["w"])
        return steps[-1]

    reference = last_update(0.0)
    for entry in (-1e-7, 1e-7):
        torch.testing.assert_close(last_update(entry), reference, rtol=1e-4, atol=0)
    assert float((last_update(-0.5) / reference)[0]) < 0.5  # where the gradient clearly disagrees, caution is in force
