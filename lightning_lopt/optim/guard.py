"""The settings of a guard that watches a learned rule, and the equations of its tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_lopt.optim.guard_readings import ADAMW_RATE


@dataclass(frozen=True)
class LossGuard:
    r"""Switches to AdamW if a learned rule fails one of six tests.

    In each step, with the update u (times ``lr``), the gradient g and the parameters p, the guard reads the loss L, the
    first-order change of the loss by u (the *promise*), :math:`d = \langle g, u \rangle`, the promise of AdamW,
    :math:`r = 10^{-3} \lVert g \rVert_1`, and :math:`\ell = \mathrm{RMS}(u) / \max(\mathrm{RMS}(p_0), 0.03)`. With
    :math:`\bar L` the median of the last 7 losses, :math:`L_0` the median of the first 3, :math:`L_*` the lowest
    :math:`\bar L`, :math:`\sigma` the noise (2.5 times the lower quartile of :math:`|\Delta L|` over 32 steps, or 1.2
    times their median), :math:`r_0` the mean of the first 3 r, and T the horizon, the guard switches if

    ============  ======================================================================================================
    not finite    u is not finite 3 times in a row while L and g are finite; or, after the first finite step, L or g is
                  not finite 10 times in a row
    uphill        d > 0 in 6 of 7 steps, :math:`\sum d > 0.5 \sum |d|` over these 7 steps, and :math:`\sum d > 0` over
                  the run, while the loss does not fall
    negligible    :math:`\sum |d| < 0.0003 \sum r` over T/50 steps (50 without T); or :math:`\sum |d| < 0.01 \sum r`
                  over T/10 steps while the loss does not fall; only before 0.7 T, since rules end with small steps
    too long      :math:`\ell > 0.2` in 5 of 7 steps, while :math:`\bar L` has fallen from :math:`L_0` by less than
                  0.05 of :math:`-\sum d`
    diverged      6 of the last 7 losses are above :math:`L_0 + 5 \sigma + 3 r_0`
    behind        :math:`\bar L > L_* + 0.5\, (L_0 - L_*) + 5 \sigma` for T/20 steps, at least 20
    ============  ======================================================================================================

    "Falls" means :math:`\bar L < L_0 - 2 \sigma`. Only differences of losses enter, so a constant added to the loss
    changes nothing. Without a loss, the guard applies only the first four tests, without their conditions on the loss.

    At a switch, the state of the rule is deleted, and the parameters are restored from a copy with a loss near its
    best; after updates that were not finite or negligible, the parameters do not change. Then AdamW trains at 0.001 (up
    to 1.25 times that, to make up for lost steps), with a warm-up of 10 steps and a linear fall to 0 over the last
    fifth of the horizon. A warning gives step and cause, and :attr:`LearnedOptimizer.guard_state` gives them later. On
    an accelerator the tests run 10 to 19 steps late, so that no step waits for the device.

    The guard cannot distinguish a loss that rises because the data change, as in continual learning, from a rule that
    falls behind.

    Memory: 8 bytes per float32 parameter for two copies of the parameter; after a switch, AdamW's moments replace them.

    Args:
        lr: learning rate of AdamW, > 0; the promises r do not depend on it.
        retries: how many more times the rule may train, with a new state, after max(100, T/10) steps of AdamW. The rule
            trains again only after a loss that rose or was not finite: a rule whose steps were uphill, too long or
            negligible would make such steps again.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> import warnings
        >>> from lightning_lopt import LearnedOptimizer, LossGuard, SGDRule
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = LearnedOptimizer([weight], SGDRule(lr=1e-12), total_steps=100, guard=LossGuard(lr=0.01))
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     for _ in range(100):
        ...         optimizer.zero_grad()
        ...         loss = weight.square().sum()
        ...         loss.backward()
        ...         optimizer.step(loss)
        >>> optimizer.guard_state
        'switched at step 10, because its steps were negligible next to those of AdamW'
    """

    lr: float = ADAMW_RATE
    retries: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise ValueError(f"LossGuard's lr must be a number above 0, got {self.lr!r}.")
        if type(self.retries) is not int or self.retries < 0:
            raise ValueError(f"LossGuard's retries must be a whole number >= 0, got {self.retries!r}.")
