"""The recurrent network of the first learned optimizers, applied to each entry separately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_numbers, check_sizes
from lightning_lopt.rules.base import Role, StepContext, TensorInputs, TensorState, UpdateRule, register_rule
from lightning_lopt.rules.shared.recurrent import Cell, Layer

BLOCK = 2**15  # number of entries that are computed at a time; the gates of one entry take 16 H bytes


def log_and_sign(grad: Tensor, log_range: float) -> Tensor:
    r"""The inputs, (n, 2), for gradients of shape (n,), with p = ``log_range``; for |g| <= e^p they lie within ±1.

    .. math:: \Big( \frac{\log |g|}{p},\, \mathrm{sign}(g) \Big) \text{ if } |g| \ge e^{-p}, \text{ else } (-1,\, e^p g)

    >>> log_and_sign(torch.tensor([1.0, -math.exp(-5), 0.5 * math.exp(-10)]), 10.0)
    tensor([[ 0.0000,  1.0000],
            [-0.5000, -1.0000],
            [-1.0000,  0.5000]])
    """
    size = torch.log(grad.abs().clamp(min=math.exp(-log_range))) / log_range
    return torch.stack([size, (grad * math.exp(log_range)).clamp(-1.0, 1.0)], -1)


@register_rule("lstm")
class LSTMRule(UpdateRule):
    r"""A deep LSTM with a state for every entry; entries share only the weights.

    .. math:: \Delta p = \eta\, (w \cdot h + b - \lambda p)

    with the hidden state h of the last :class:`~lightning_lopt.rules.shared.recurrent.Cell`. All states begin at 0. The
    first cell reads :func:`log_and_sign` of the gradient; each further cell reads the h of the previous cell.

    Args:
        hidden: size H of each cell.
        layers: number of cells.
        step_mult: η, >= 0.
        log_range: p, > 0: the input for gradients of size e^-p or more is their logarithm.

    Raises:
        ValueError: if an argument lies outside its range.

    State bytes per parameter (float32): 8 H per layer, by default 320.
    References: Andrychowicz et al. 2016, https://arxiv.org/abs/1606.04474.

    Example:
        >>> rule = LSTMRule(hidden=4, layers=2)
        >>> state = rule.init_tensor(torch.zeros(10, 3), "matrix")
        >>> {name: tuple(value.shape) for name, value in state.items()}
        {'hidden': (2, 30, 4), 'cell': (2, 30, 4)}
    """

    starts_random = True

    def __init__(self, hidden: int = 20, layers: int = 2, step_mult: float = 0.1, log_range: float = 10.0) -> None:
        super().__init__()
        check_sizes(hidden=hidden, layers=layers)
        check_numbers(0.0, step_mult=step_mult)
        if not 0 < log_range <= 80:
            raise ValueError(f"log_range must be a number in (0, 80], got {log_range!r}.")
        self.hidden, self.layers, self.step_mult, self.log_range = hidden, layers, step_mult, log_range
        self.cells = nn.ModuleList([Cell(hidden if layer else 2, hidden) for layer in range(layers)])
        self.output = Layer(hidden, 1)

    @property
    def config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("hidden", "layers", "step_mult", "log_range")}

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        """h and c of every entry and layer, (layers, n, H) each."""
        return {key: param.new_zeros(self.layers, param.numel(), self.hidden) for key in ("hidden", "cell")}

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        grad, state = inputs.grad, inputs.state
        size = grad.numel() if torch.compiler.is_compiling() else BLOCK
        tensors = (grad.reshape(-1), 0), (state["hidden"], 1), (state["cell"], 1)
        pieces = zip(*(torch.split(x, size, axis) for x, axis in tensors), strict=True)
        outputs, hidden, cell = zip(*(self._entries(*piece) for piece in pieces), strict=True)
        output = torch.cat(outputs).reshape(grad.shape)
        new_state = {"hidden": torch.cat(hidden, 1), "cell": torch.cat(cell, 1)}
        return self.step_mult * (output - inputs.weight_decay * inputs.param), new_state

    def _entries(self, grad: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output (n,), and new h and c, (layers, n, H), of n entries."""
        dtype = self.output.weight.dtype
        x, new_states = log_and_sign(grad, self.log_range).to(dtype), []
        for layer, layer_state in zip(self.cells, zip(hidden.to(dtype), cell.to(dtype), strict=True), strict=True):
            new_states.append(layer(x, *layer_state))
            x = new_states[-1][0]
        output = self.output(x)[:, 0].to(grad.dtype)
        hidden, cell = (torch.stack(layer_states).to(grad.dtype) for layer_states in zip(*new_states, strict=True))
        return output, hidden, cell
