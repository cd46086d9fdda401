"""Processes that are killed at random moments, for the tests in this folder."""

import os
import random
import signal
import time
from multiprocessing import get_context

MOMENTS = 20


def kill_at_moments(target, *arguments, moments=MOMENTS, longest=0.2, seed=0):
    """Run ``target(*arguments, begun)`` in a forked process, kill -9 it a random time after it set the event ``begun``.

    Yields the number of each kill after it, ``moments`` times; ``target`` must not end by itself before.
    """
    draws, context = random.Random(seed), get_context("fork")
    for number in range(moments):
        begun = context.Event()
        process = context.Process(target=target, args=(*arguments, begun))
        process.start()
        assert begun.wait(120)
        time.sleep(draws.uniform(0.0, longest))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        yield number


def drafts(*folders):
    """What processes that were killed have left in folders."""
    return [path for folder in folders if folder.is_dir() for path in folder.glob(".saving-*")]
