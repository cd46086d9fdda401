"""Measurements with made-up numbers, for tests that know what must come out."""

import torch

from lightning_lopt.evaluation.measurement import CHECKPOINTS, Measurement, window_ends


def run(train, *, horizon=None, valid=None, final_train=None, optimizer="ours", metrics=None):
    """A measurement whose windows have the losses ``train``, a list for one seed or a tensor ``(W, S)``."""
    train = torch.as_tensor(train, dtype=torch.float32)
    train = train[:, None] if train.dim() == 1 else train
    horizon = len(train) if horizon is None else horizon
    assert len(window_ends(horizon)) == len(train)
    final_train = train[-1] if final_train is None else torch.as_tensor(final_train, dtype=torch.float32)
    checkpoints = len(window_ends(horizon, CHECKPOINTS))
    valid = final_train.expand(checkpoints, -1) if valid is None else torch.as_tensor(valid, dtype=torch.float32)
    valid = valid[:, None].expand(-1, train.shape[1]) if valid.dim() == 1 else valid
    return Measurement(optimizer, horizon, train, valid, final_train, None, metrics or {})


def noisy_run(optimizer, seed, *, level=0.3, horizon=250, seeds=3):
    """Losses that fall from 2 to about ``level``, with noise."""
    draws = torch.Generator().manual_seed(seed)
    windows = min(100, horizon)
    fall = torch.linspace(0, 1, windows)[:, None]
    train = 2.0 * (level / 2.0) ** fall * (1 + 0.1 * torch.randn(windows, seeds, generator=draws)).abs()
    checkpoints = train[4::5] * 1.2
    return Measurement(
        optimizer, horizon, train, checkpoints, train[-1] * 0.95, 0.01, {"accuracy": 1 / (1 + checkpoints)}
    )
