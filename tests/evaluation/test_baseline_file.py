"""The file of baselines: shared by processes, damaged, or on a full disk."""

import json
import os
import warnings
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from lightning_lopt.evaluation.baselines import Baselines, add_entries, read_entries
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.tasks import Quadratic


def bowl(horizon=15):
    return Problem("bowl", Quadratic(torch.tensor([1.0, 2.0]), noise=0.1), horizon)


@pytest.mark.parametrize("place", ["fingerprint", "sweep", "learning_rate", "train", "horizon"])
def test_huge_integers_are_refused(place, tmp_path):
    path = tmp_path / "baselines.json"
    Baselines(path, seeds=1)(bowl(), "adam_default")
    content = json.loads(path.read_text())
    entry = content["entries"][0]
    if place in ("fingerprint", "sweep"):
        entry[place][0] = 10**400
    elif place == "train":
        entry["measurement"]["train"][0][0] = 10**400
    else:
        entry["measurement"][place] = 10**400
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is not a file of baselines .*; delete it") as caught:
        Baselines(path, seeds=1)
    assert len(str(caught.value)) < 500
    assert json.loads(path.read_text()) == content


def add_one_by_one(path, entry, number, count, go):
    go.wait()
    for index in range(count):
        add_entries(path, [replace(entry, key=f"{number}-{index}")])


@pytest.mark.parametrize(
    ("processes", "count"),
    [(2, 10), pytest.param(2, 40, marks=pytest.mark.slow), pytest.param(4, 40, marks=pytest.mark.slow)],
)
def test_processes_that_share_a_file_lose_nothing(processes, count, tmp_path):
    known, path = Baselines(seeds=1, shipped=False), tmp_path / "new" / "baselines.json"
    known(bowl(), "adam_default")
    (entry,) = known.entries
    context = get_context("fork")
    go = context.Event()
    writers = [context.Process(target=add_one_by_one, args=(path, entry, n, count, go)) for n in range(processes)]
    for writer in writers:
        writer.start()
    go.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    keys = [entry.key for entry in read_entries(path)]
    assert sorted(keys) == sorted(f"{number}-{index}" for number in range(processes) for index in range(count))
    assert [entry.key for entry in add_entries(path, [replace(entry, key="0-1")])] == keys  # known already


def test_a_file_that_cannot_be_written_costs_no_measurement(tmp_path, monkeypatch):
    known = Baselines(tmp_path / "baselines.json", seeds=1, shipped=False)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"not stored \(.*No space left on device: .*baselines.json'\)"):
        first = known(bowl(), "adam_default")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        known(bowl(horizon=7), "adam_default")
    assert known(bowl(), "adam_default") is first
    monkeypatch.undo()
    known(bowl(horizon=8), "adam_default")  # there is room again: nothing is missing
    assert len(read_entries(tmp_path / "baselines.json")) == 3


def test_a_file_that_was_damaged_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / "baselines.json"
    known = Baselines(path, seeds=1, shipped=False)
    path.write_text("{")
    with pytest.warns(UserWarning, match="is not a file of baselines"):
        known(bowl(), "adam_default")
    assert path.read_text() == "{"
