"""The long short-term memory (LSTM) of rules; in most rules each tensor has its own state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE
from lightning_lopt.rules.shared.entry_network import initial_weight

KEYS = ("hidden", "cell", "started")


class Layer(nn.Linear):
    """A linear layer with the initial values of the reference: weights are truncated normal with standard deviation
    1/√inputs, and biases are 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, dtype=THETA_DTYPE)

    def reset_parameters(self) -> None:
        self.weight = initial_weight(*self.weight.shape, fan_in=self.in_features)
        nn.init.zeros_(self.bias)


class Cell(nn.Module):
    r"""A cell of long short-term memory.

    .. math::
        i, g, f, o = W [x, h] + b, \qquad c' = \sigma(f + 1)\, c + \sigma(i) \tanh(g), \qquad h' = \sigma(o) \tanh(c')

    Args:
        inputs: number F of inputs x.
        hidden: size H of h and c.

    Attributes:
        gates: W and b, the layer from F + H to 4 H; blocks of rows in the order i, g, f, o.

    References: Hochreiter and Schmidhuber 1997; Jozefowicz et al. 2015 (the 1 that is added to f).
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gates = Layer(inputs + hidden, 4 * hidden)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """New h and c, (n, H), from inputs (n, F) and the previous h and c."""
        i, g, f, o = self.gates(torch.cat([x, hidden], -1)).chunk(4, -1)
        cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class LSTM(Cell):
    """A cell with a state for each tensor, and a learned initial state.

    Attributes:
        initial_hidden, initial_cell: (H).
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.initial_hidden = nn.Parameter(torch.zeros(hidden, dtype=THETA_DTYPE))
        self.initial_cell = nn.Parameter(torch.zeros(hidden, dtype=THETA_DTYPE))

    def init_state(self, like: Tensor) -> dict[str, Tensor]:
        """State of one tensor before its first step, in the type of ``like``: h and c, (H,), and ``started``, 0-dim."""
        size = len(self.initial_hidden)
        return {"hidden": like.new_zeros(size), "cell": like.new_zeros(size), "started": like.new_zeros(())}

    def recall(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """h and c of one tensor, (H,) each, in the type of θ; the learned initial state at the first step."""
        dtype, has_started = self.gates.weight.dtype, state["started"] > 0
        hidden = torch.where(has_started, state["hidden"].to(dtype), self.initial_hidden)
        return hidden, torch.where(has_started, state["cell"].to(dtype), self.initial_cell)


def lstm_state(hidden: Tensor, cell: Tensor, like: Tensor) -> dict[str, Tensor]:
    """State of one tensor after a step, from its h and c, (H,) each."""
    return {"hidden": hidden.to(like.dtype), "cell": cell.to(like.dtype), "started": like.new_ones(())}
