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


def made_results(problems=4, *, seeds=3, command="lightning-lopt evaluate ours", trained_on=None, **names):
    """Results of two rules and two baselines on problems with made-up numbers, one of them a rule's failure."""
    from lightning_lopt.evaluation.results import ProblemResult, Results, RuleRecord

    ours, other = names.get("ours", "ours"), names.get("other", "other")
    made = []
    for number in range(problems):
        levels = {ours: 0.1 * (number + 1), other: 0.3, "adamw": 0.25, "muon": 0.15}
        runs = {
            name: noisy_run(name, 10 * number + index, level=level, horizon=250 * (number + 1), seeds=seeds)
            for index, (name, level) in enumerate(levels.items())
        }
        if number == problems - 1:
            runs[other].train[40:, 0] = torch.nan
            runs[other].final_train[0] = torch.inf
            runs[other].valid[8:, 0] = torch.nan
        made.append(
            ProblemResult(
                names.get("problem", "problem {}").format(number),
                250 * (number + 1),
                2.0,
                runs,
                ("image_mlp", "char_rnn", "image_vit", "")[number % 4],
                ("digits", "argparse", "mnist", "")[number % 4],
                1000 * (number + 1),
                0.002,
                {ours: 0.003, other: 0.002, "adamw": 0.001, "muon": 0.0015},
            )
        )
    if trained_on is None:
        trained_on = {
            "families": ["image_mlp", "image_vit"],
            "data": ["digits"],
            "chosen_on": ["problem 1", "elsewhere"],
            "horizons": [100, 600],
        }
    records = {name: RuleRecord("residual", {"step": 0.1}, "ab" * 32, 32, trained_on, name) for name in (ours, other)}
    return Results(records, ("adamw", "muon"), tuple(made), "made up", 0, {"torch": "2.13", "cores": 2}, command)
