"""The LSTM of VeLO and Celo, which has one state per tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_lopt.rules.shared.recurrent import LSTM, Layer


class TensorController(nn.Module):
    r"""An LSTM with one state per tensor, whose input contains a maximum over all tensors.

    .. math:: z = W_o x + b_o + \max_{\text{tensors}} \mathrm{relu}(W_p x + b_p)

    is the input of an :class:`~lightning_lopt.rules.shared.recurrent.LSTM`; K shares and one step size are linear
    functions of the new state h' of the LSTM.

    Attributes:
        pooled, own: layers from F signals to H.
        share, step: layers from H to K shares and to one step size.
    """

    def __init__(self, signals: int, hidden: int, copies: int) -> None:
        super().__init__()
        self.lstm = LSTM(hidden, hidden)
        self.pooled, self.own = Layer(signals, hidden), Layer(signals, hidden)
        self.share, self.step = Layer(hidden, copies), Layer(hidden, 1)

    def forward(self, signals: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shares (n, K), step sizes (n,), and new h and c, (n, H), from signals (n, F) and the previous h and c."""
        pooled = torch.relu(self.pooled(signals)).amax(0)
        hidden, cell = self.lstm(self.own(signals) + pooled, hidden, cell)
        return self.share(hidden), self.step(hidden)[:, 0], hidden, cell
