"""What the controller sees, column by column, from the definitions in plain Python."""

import math

import pytest
import torch

from lightning_lopt import StepContext
from lightning_lopt.rules.residual_parts.signals import SIGNALS, average_loss, shared_signals, tensor_signals


def clamp(x, limit):
    return max(-limit, min(limit, x))


def mean_square(values):
    return sum(value**2 for value in values) / len(values)


def test_columns():
    params = {"w": torch.tensor([[1.0, -2.0, 0.5, 3.0]]), "b": torch.tensor(0.3)}
    grads = {"w": torch.tensor([[0.1, 0.2, -0.3, 0.4]]), "b": torch.tensor(-0.05)}
    tensors = {
        "w": {
            "momentum": torch.tensor([[0.2, 0.1, -0.1, 0.0]]),
            "gradient_power": torch.tensor(0.05),
            "initial_rms": torch.tensor(1.5),
        },
        "b": {
            "momentum": torch.tensor(0.02),
            "gradient_power": torch.tensor(1e-9),
            "initial_rms": torch.tensor(0.1),
        },
    }
    losses, fast, slow = [2.0, 1.5, 1.8], 0.0, 0.0
    averages = torch.zeros(2)
    for step, loss in enumerate(losses):
        context = StepContext(torch.tensor(float(step)), torch.tensor(100.0), torch.tensor(loss))
        averages = average_loss(averages, context)
        fast, slow = 0.9 * fast + 0.1 * loss, 0.99 * slow + 0.01 * loss
    torch.testing.assert_close(averages, torch.tensor([fast, slow]))
    fast, slow = fast / (1 - 0.9**3), slow / (1 - 0.99**3)
    common = shared_signals(averages, context)
    signals = torch.stack(
        [
            torch.cat([common, tensor_signals(params[name], grads[name], **tensors[name], role=role)])
            for name, role in (("w", "head"), ("b", "vector"))
        ]
    )
    assert signals.shape == (2, SIGNALS)
    shared = [
        2 / 100,
        3 / 5,
        math.log(100) / 10,
        clamp(4 * (fast - slow) / (fast + slow), 1),
        clamp(4 * (1.8 - fast) / (1.8 + fast), 1),
    ]
    for row, name, columns, role in ((0, "w", 4, [0, 0, 0, 1]), (1, "b", 1, [0, 1, 0, 0])):
        g, m, p = (x.flatten().tolist() for x in (grads[name], tensors[name]["momentum"], params[name]))
        power = float(tensors[name]["gradient_power"])
        inner = sum(a * b for a, b in zip(g, m, strict=True)) / len(g)
        own = [
            clamp(math.log(mean_square(g) / power) / 4, 2),
            inner / math.sqrt(mean_square(g) * mean_square(m)),
            clamp(math.log(mean_square(m) / power) / 4, 2),
            clamp(math.log(mean_square(p) / float(tensors[name]["initial_rms"]) ** 2) / 4, 2),
            0.0,  # log2 of one row
            math.log2(columns) / 10,
        ]
        assert signals[row].tolist() == pytest.approx(shared + own + role, rel=1e-4, abs=1e-5)
