"""Freed memory is kept by one setting of the process, for training and for meta-training."""

import ctypes
import platform
from types import SimpleNamespace

import pytest
import torch

from lightning_lopt import allocator
from lightning_lopt.allocator import LARGEST_BLOCK, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from lightning_lopt.meta import trainer
from lightning_lopt.optim import stacking


@pytest.fixture
def settings(monkeypatch):
    """The calls of ``mallopt``, in a process that made none so far."""
    calls = []
    libc = SimpleNamespace(mallopt=lambda *call: calls.append(call) or 1, gnu_get_libc_version=None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator, "_largest_limit", 0)
    return calls


def test_it_is_kept_where_it_can_be():
    assert keep_freed_memory(2**26) == (platform.libc_ver()[0] == "glibc")
    assert torch.ones(10).sum() == 10


def test_the_largest_limit_holds_whoever_comes_first(settings):
    """A fit after meta-training does not lower what meta-training needs, and repeats nothing."""
    for limit in (stacking.FREED_MEMORY, trainer.FREED_MEMORY, stacking.FREED_MEMORY):
        assert keep_freed_memory(limit)
    block = (M_MMAP_THRESHOLD, LARGEST_BLOCK)
    assert settings == [block, (M_TRIM_THRESHOLD, 2**26), block, (M_TRIM_THRESHOLD, 2**29)]


def test_a_refused_setting_is_not_taken_for_made(settings, monkeypatch):
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *call: 0, gnu_get_libc_version=None)
    )
    assert [keep_freed_memory(1), keep_freed_memory(1)] == [False, False]


def test_another_c_library_is_left_alone(settings, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory(1)
