"""The controller against its equations, written out entry by entry, and against its bounds."""

import math

import torch

from lightning_lopt.rules.residual_parts.controller import Controller


def moved(step_range=3.0, scale=0.5):
    draws = torch.Generator().manual_seed(0)
    controller = Controller(inputs=3, hidden=2, step_range=step_range).double()
    with torch.no_grad():
        for value in controller.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=draws, dtype=torch.float64))
    return controller


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_hand(controller, x, h):
    """One tensor's step of the recurrence in plain Python: z first, then r; [x, h] in this order."""
    theta = {name: value.tolist() for name, value in controller.named_parameters()}

    def layer(weight, bias, inputs):
        return [sum(w * v for w, v in zip(row, inputs, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    gates = [sigmoid(value) for value in layer(theta["gate_weight"], theta["gate_bias"], x + h)]
    z, r = gates[:2], gates[2:]
    reset = [a * b for a, b in zip(r, h, strict=True)]
    n = [math.tanh(value) for value in layer(theta["candidate_weight"], theta["candidate_bias"], x + reset)]
    new = [(1 - a) * b + a * c for a, b, c in zip(z, n, h, strict=True)]
    step, decay, mix = (math.tanh(value) for value in layer(theta["output_weight"], theta["output_bias"], new))
    return [3.0**step, math.exp(2 * decay), 0.2 * mix], new


def test_equations():
    controller = moved()
    signals = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden, plain = torch.zeros(4, 2, dtype=torch.float64), [[0.0, 0.0]] * 4
    for _ in range(3):
        controls, hidden = controller(signals, hidden)
        steps = [by_hand(controller, x, h) for x, h in zip(signals.tolist(), plain, strict=True)]
        plain = [new for _, new in steps]
        expected = torch.tensor([control for control, _ in steps], dtype=torch.float64)
        torch.testing.assert_close(torch.stack(list(controls), -1), expected)
        torch.testing.assert_close(hidden, torch.tensor(plain, dtype=torch.float64))


def test_identity_before_any_meta_training():
    controls, _ = Controller(3, 2, 4.0)(torch.randn(5, 3), torch.zeros(5, 2))
    for control, value in zip(controls, (1.0, 1.0, 0.0), strict=True):
        assert torch.equal(control, torch.full((5,), value))


def test_bounds():
    controls, hidden = moved(scale=100.0)(torch.randn(50, 3, dtype=torch.float64), torch.zeros(50, 2).double())
    for control, (low, high) in zip(controls, [(1 / 3, 3), (math.exp(-2), math.exp(2)), (-0.2, 0.2)], strict=True):
        assert (control >= low - 1e-12).all()
        assert (control <= high + 1e-12).all()
    assert hidden.abs().max() <= 1
