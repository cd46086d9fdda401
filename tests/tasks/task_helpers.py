"""Small things that several tests of tasks need."""

import torch

from lightning_lopt.seeding import generator


def built(make):
    """What ``make()`` returns, for instance a module, with the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        return make()


def normal(*shape, seed=0):
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator(seed, "normal"))
