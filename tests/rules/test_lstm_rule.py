"""The LSTM for every entry against torch's own cell, one entry at a time."""

import math

import pytest
import torch
from torch import nn

from lightning_lopt import LSTMRule, StepContext
from lightning_lopt.rules import lstm


def torch_cell(cell, hidden):
    """``nn.LSTMCell``, whose gates stand in the order i, f, g, o, and whose f has no 1 beside it."""
    weight, bias = cell.gates.weight.detach(), cell.gates.bias.detach()
    i, g, f, o = weight.chunk(4)
    bi, bg, bf, bo = bias.chunk(4)
    weight, bias = torch.cat([i, f, g, o]), torch.cat([bi, bf + 1, bg, bo])
    theirs = nn.LSTMCell(weight.shape[1] - hidden, hidden).double()
    theirs.load_state_dict(
        {
            "weight_ih": weight[:, :-hidden],
            "weight_hh": weight[:, -hidden:],
            "bias_ih": bias,
            "bias_hh": torch.zeros_like(bias),
        }
    )
    return theirs


def plain_loop(rule, param, grads):
    """The same run for each entry by itself."""
    cells = [torch_cell(cell, rule.hidden) for cell in rule.cells]
    entries = []
    for index, start in enumerate(param.flatten().tolist()):
        state = [None] * len(cells)
        value = start
        for grad in grads:
            g = float(grad.flatten()[index])
            small = abs(g) < math.exp(-rule.log_range)
            x = (
                (-1.0, g * math.exp(rule.log_range))
                if small
                else (math.log(abs(g)) / rule.log_range, math.copysign(1, g))
            )
            x = torch.tensor([x], dtype=torch.float64)
            for layer, cell in enumerate(cells):
                state[layer] = cell(x, state[layer])
                x = state[layer][0]
            value += rule.step_mult * float(rule.output.weight[0] @ x[0] + rule.output.bias[0])
        entries.append(value)
    return torch.tensor(entries, dtype=torch.float64).reshape(param.shape)


@torch.no_grad()
@pytest.mark.parametrize("block", [2**15, 4])
def test_equals_a_plain_loop_over_torchs_cells(block, monkeypatch):
    monkeypatch.setattr(lstm, "BLOCK", block)
    torch.manual_seed(0)
    rule = LSTMRule(hidden=5, layers=2).double()
    for value in rule.parameters():
        value.add_(0.3 * torch.randn_like(value))
    param = torch.randn(3, 4, dtype=torch.float64)
    sizes = 10.0 ** torch.linspace(-9, 3, 12, dtype=torch.float64).reshape(3, 4)
    grads = [torch.randn(3, 4, dtype=torch.float64) * sizes for _ in range(6)]
    expected = plain_loop(rule, param, grads)
    state, value = rule.init_state({"a": param}, {}), param
    for step, grad in enumerate(grads):
        updates, state = rule({"a": value}, {"a": grad}, state, StepContext(torch.tensor(step), torch.tensor(9)))
        value = value + updates["a"]
    assert (value - param).abs().min() > 1e-4
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
