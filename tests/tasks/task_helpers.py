"""Small things that several tests of tasks need."""

import torch

from lightning_lopt import AdamRule
from lightning_lopt.meta import start_runs
from lightning_lopt.meta.batches import BatchDraws
from lightning_lopt.seeding import generator


def built(make):
    """What ``make()`` returns, for instance a module, with the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        return make()


def normal(*shape, seed=0):
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator(seed, "normal"))


def check_draws(task, splits):
    """Steps drawn several at once are those drawn one after the other; beyond the five, the last is repeated."""
    one_by_one = generator(2)
    expected = [{split: task.draw(one_by_one, 2, split=split) for split in splits} for _ in range(5)]
    expected += expected[-1:] * 2
    runs = start_runs(AdamRule(), task, pairs=2, horizon=9, seed=0)
    draws, first = BatchDraws(runs, generator(2), splits, 5), 0
    for steps in (1, 3, 2, 1):
        drawn = draws(steps)
        for at, one in enumerate(expected[first : first + steps]):
            assert drawn.keys() == one.keys()
            for split, batch in one.items():
                assert drawn[split].keys() == batch.keys()
                assert all(torch.equal(drawn[split][name][at], value) for name, value in batch.items())
        first += steps
