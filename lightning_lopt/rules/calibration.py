"""Factors on the steps of a run that the run itself calibrates: were the last steps too long, or too short?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_lopt.rules.arithmetic import TINY
from lightning_lopt.rules.base import THETA_DTYPE, Params, StepContext

PROMISE_LIMIT = 0.3  # one gradient says no more than that
LOSS_FLOOR = 0.05  # in units of the first loss: below it, relative changes are noise
FALL_FLOOR = 1e-3  # likewise: below it, steps fall no further
LOWEST, HIGHEST = math.log(1e-3), 1.0  # of the logarithm of the common factor
LEAST, MOST = -4.0, 1.5  # of the logarithm of what one tensor has beside it


class Calibration(nn.Module):
    r"""A factor :math:`\gamma` on all updates and one on each tensor's, from what the last update now promises.

    With u the last update, g the gradient after it, L the loss and :math:`L_0` the first one,

    .. math::
        a = \mathrm{clip}\Big(\frac{-\langle g_t, u_{t-1} \rangle}{\max(L_t, 0.05\, L_0)}, \pm 0.3\Big), \qquad
        \log \gamma \leftarrow \log \gamma + \beta_- \min(a + \tau, 0) + \beta_+ \max(a, 0)

    a is the relative decrease of the loss that repeating the last update promises, to first order: above 0 the step
    stopped short, well below 0 it went past the valley. Gradients alone cannot tell either from noise; in units of the
    loss both are of one size on very different models. Multiplying the loss by a constant changes nothing.

    What tensor i of n contributes, :math:`a_i` (clipped after multiplying it by n), moves its own factor
    :math:`\gamma_i` by how it differs from the whole:

    .. math:: \log \gamma_i \leftarrow \log \gamma_i + \beta (a_i - a)

    Beside these, with :math:`r = \min(L / L_0, 1)`, all steps fall with the loss, by :math:`\max(r, 0.001)^\varphi`,
    since a step of given length is too long close to a minimum. What weight decay takes in a step does not fall with
    them, and grows by :math:`\exp(\kappa\, (1 - r)^4)`: a model that memorises its training set, whose loss goes to
    zero, is held back, one that cannot is left alone.

    The signal is that of hypergradient descent (Baydin et al. 2018, https://arxiv.org/abs/1703.04782), in the unit of
    the loss.

    Args:
        shrink: initial :math:`\beta_-`, > 0.
        grow: initial :math:`\beta_+`, > 0.
        tolerance: initial :math:`\tau`, > 0.
        balance: initial :math:`\beta`, > 0.
        restraint: initial :math:`\kappa`.
        fall: initial :math:`\varphi`, > 0.
    """

    def __init__(
        self,
        shrink: float = 0.3,
        grow: float = 0.1,
        tolerance: float = 0.03,
        balance: float = 0.2,
        restraint: float = 0.0,
        fall: float = 0.35,
    ) -> None:
        super().__init__()
        self.log_shrink = nn.Parameter(torch.tensor(math.log(shrink), dtype=THETA_DTYPE))
        self.log_grow = nn.Parameter(torch.tensor(math.log(grow), dtype=THETA_DTYPE))
        self.log_tolerance = nn.Parameter(torch.tensor(math.log(tolerance), dtype=THETA_DTYPE))
        self.log_balance = nn.Parameter(torch.tensor(math.log(balance), dtype=THETA_DTYPE))
        self.restraint = nn.Parameter(torch.tensor(restraint, dtype=THETA_DTYPE))
        self.log_fall = nn.Parameter(torch.tensor(math.log(fall), dtype=THETA_DTYPE))

    def loss_factors(self, memory: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
        """What all steps and what weight decay, which is in units of them, are multiplied with for how far the loss has
        fallen, 0-dim each; for ``memory`` and errors see :meth:`forward`."""
        loss, first = _losses(memory, context)
        left = (loss / (first + TINY)).clamp(max=1.0)
        steps = left.clamp(min=FALL_FLOOR) ** torch.exp(self.log_fall).to(left.dtype)
        return steps, torch.exp(self.restraint.to(left.dtype) * (1 - left) ** 4) / steps

    def forward(
        self, memory: Tensor, own: Params, grads: Params, last_updates: Params, context: StepContext
    ) -> tuple[Tensor, Tensor, Params]:
        """The common factor's logarithm, and what to remember.

        Args:
            memory: logarithm of the common factor and the first loss, shape ``(2,)``; zeros before the first step.
            own: logarithm of each tensor's own factor, 0-dim; zeros before the first step.
            grads: present gradients by name.
            last_updates: what was last added to the same parameters, zeros before the first step.
            context: of this step, with its loss.

        Returns:
            the logarithm of the common factor, the new memory, and the new logarithms of the tensors' own factors.

        Raises:
            ValueError: if there is no loss.
        """
        loss, first = _losses(memory, context)
        products = [(grad * last_updates[name]).sum().to(memory.dtype) for name, grad in grads.items()]
        promises = -torch.stack(products) / (torch.maximum(loss, LOSS_FLOOR * first) + TINY)
        promise = promises.sum().clamp(-PROMISE_LIMIT, PROMISE_LIMIT)
        shrink = torch.exp(self.log_shrink) * (promise + torch.exp(self.log_tolerance)).clamp(max=0.0)
        grow = torch.exp(self.log_grow) * promise.clamp(min=0.0)
        common = (memory[0] + (shrink + grow).to(memory.dtype)).clamp(LOWEST, HIGHEST)
        shares = (len(grads) * promises).clamp(-PROMISE_LIMIT, PROMISE_LIMIT) - promise
        moved = torch.stack([own[name] for name in grads]) + torch.exp(self.log_balance) * shares
        rows = zip(grads, moved.clamp(LEAST, MOST).unbind(), strict=True)
        balanced = {name: row.to(own[name].dtype) for name, row in rows}
        return common, torch.stack([common, first]), balanced


def _losses(memory: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """The present loss and the first one, as absolute values."""
    if context.loss is None:
        raise ValueError("a calibrated ResidualRule reads the loss, but StepContext.loss is None; pass the loss.")
    loss = context.loss.abs().to(memory.dtype)
    return loss, torch.where(context.step < 1, loss, memory[1])
