"""Tuned baselines: what is chosen, where it is kept, and that the shipped numbers can be made again."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import lightning_lopt.evaluation.baselines as baselines_module
import lightning_lopt.evaluation.sweeps as sweeps_module
from lightning_lopt.evaluation.baselines import (
    BASELINES,
    BaselineRecord,
    Baselines,
    Sweep,
    fingerprint,
    read_entries,
    write_entries,
)
from lightning_lopt.evaluation.measurement import Problem, run_rules
from lightning_lopt.rules import AdamRule
from lightning_lopt.tasks import ImageMLPTask, LabelledImages, Quadratic
from lightning_lopt.tasks.transforms import LowPrecisionTask


def bowl(curvature=1.0, horizon=15, name="bowl"):
    return Problem(name, Quadratic(torch.tensor([curvature, 2 * curvature]), noise=0.1), horizon)


@pytest.fixture
def forbidden(monkeypatch):
    """Nothing may be computed."""

    def refuse(*_, **__):
        raise AssertionError("computed although it is known")

    monkeypatch.setattr(sweeps_module, "run_rules", refuse)


UNTUNED = {"adam_default": 1e-3, "adamw_1e-3": 1e-3, "soap_3e-3": 3e-3, "prodigy": 1.0, "schedule_free_2.5e-3": 2.5e-3}


def test_sweeps_are_half_decades():
    for name, sweep in BASELINES.items():
        assert sweep.tuned == (name not in UNTUNED)
        rates = sweep.learning_rates
        assert not sweep.tuned or len(rates) == (5 if name == "soap" else 8)
        assert sweep.tuned or rates == (UNTUNED[name],)
        for slower, faster in pairwise(rates):
            assert faster / slower == pytest.approx(10**0.5, rel=0.06)
        assert sweep.make(rates[0]).config["lr"] == rates[0]


def test_the_lowest_median_of_final_training_losses_is_chosen():
    problem = bowl()
    for name, sweep in BASELINES.items():
        if not sweep.available:
            continue
        finals = []
        for rate in sweep.learning_rates:
            (run,) = replace(sweep, learning_rates=(rate,)).run(problem, seeds=3, device="cpu")
            finals.append(run.final_train.median())
        best = int(torch.stack(finals).nan_to_num(math.inf).argmin())
        found = Baselines(seeds=3, shipped=False)(problem, name)
        assert found.optimizer == name
        assert found.learning_rate == (sweep.learning_rates[best] if sweep.tuned else None)
        assert float(found.final_train.median()) == pytest.approx(float(finals[best]), rel=1e-4)


def test_large_models_take_turns(monkeypatch):
    """The same numbers whether all learning rates run side by side or one after the other."""
    together = Baselines(seeds=2, shipped=False)(bowl(), "adamw")
    monkeypatch.setattr(sweeps_module, "SIDE_BY_SIDE", 3 * 2 * 2)
    counts = []

    def counting(rules, *args, **options):
        counts.append(len(rules))
        return run_rules(rules, *args, **options)

    monkeypatch.setattr(sweeps_module, "run_rules", counting)
    in_turn = Baselines(seeds=2, shipped=False)(bowl(), "adamw")
    assert counts == [3, 3, 2]
    assert in_turn.learning_rate == together.learning_rate
    torch.testing.assert_close(in_turn.train, together.train)


def test_what_diverges_is_never_chosen():
    found = Baselines(seeds=3, shipped=False)(bowl(curvature=30.0, horizon=300), "sgd")
    assert found.final_train.isfinite().all()
    assert found.learning_rate < 3


def test_a_file_is_read_again_and_added_to(tmp_path, request):
    path = tmp_path / "folder" / "baselines.json"
    first = Baselines(path, seeds=2)(bowl(), "adamw")
    second = Baselines(path, seeds=2)(bowl(), "sgd")
    assert [entry.measurement.optimizer for entry in read_entries(path)] == ["adamw", "sgd"]
    request.getfixturevalue("forbidden")
    again = Baselines(path, seeds=2)
    for name, known in (("adamw", first), ("sgd", second)):
        found = again(bowl(name="another name"), name)
        torch.testing.assert_close(found.train, known.train, rtol=1e-5, atol=1e-8)
        assert found.learning_rate == known.learning_rate
    assert sorted(file.name for file in path.parent.iterdir()) == [".baselines.json.lock", "baselines.json"]


def test_what_another_process_added_is_kept(tmp_path):
    path = tmp_path / "baselines.json"
    one, other = Baselines(path, seeds=1), Baselines(path, seeds=1)
    one(bowl(), "adam_default")
    other(bowl(2.0), "adam_default")
    one(bowl(3.0), "adam_default")
    assert len(read_entries(path)) == 3
    assert one.find(bowl(2.0), "adam_default") is not None


def test_whatever_changes_the_numbers_is_another_baseline():
    known = Baselines(seeds=1, shipped=False)
    known(bowl(), "adamw")
    quantised = Problem("bowl", LowPrecisionTask(bowl().task, "int8"), 15)
    for problem in (bowl(horizon=16), bowl(1.01), quantised):
        assert known.find(problem, "adamw") is None
    assert known.find(bowl(), "sgd") is None
    assert known.find(bowl(name="renamed"), "adamw") is not None
    more_seeds = Baselines(seeds=2, shipped=False)
    more_seeds.entries = known.entries
    assert more_seeds.find(bowl(), "adamw") is None


def test_activation_and_initial_scale_change_the_fingerprint():
    draws = torch.Generator().manual_seed(0)
    data = LabelledImages(torch.randn(60, 1, 3, 3, generator=draws), torch.arange(60) % 3, 3, "noise")
    parts = data.split(0.25, draws)
    plain = fingerprint(ImageMLPTask(*parts, (8,)))
    entry = BaselineRecord("key", "noise", plain, [], None)
    assert entry.fits(fingerprint(ImageMLPTask(*parts, (8,))))
    for options in ({"activation": "gelu"}, {"init_scale": 1.05}, {"scheme": "lecun"}):
        assert not entry.fits(fingerprint(ImageMLPTask(*parts, (8,), **options)))


def test_a_model_without_a_finite_loss_is_known_again(tmp_path):
    path, broken = tmp_path / "baselines.json", Problem("broken", Quadratic(torch.tensor([torch.inf])), 2)
    Baselines(path, seeds=1)(broken, "adam_default")
    assert Baselines(path, seeds=1).find(broken, "adam_default") is not None


def test_the_last_digits_of_another_machine_do_not_matter():
    entry = BaselineRecord("key", "problem", [2.30259, 0.5, 0.0], [], None)
    assert entry.fits([2.303, 0.49951, 1e-9])
    assert not entry.fits([2.32, 0.5, 0.0])
    assert not entry.fits([2.30259, 0.5])


def test_the_users_file_comes_before_the_shipped_one_and_that_before_computing(tmp_path, monkeypatch, request):
    shipped, own = Baselines(seeds=1, shipped=False), tmp_path / "own.json"
    shipped(bowl(), "adamw")
    monkeypatch.setattr(baselines_module, "shipped_entries", lambda: shipped.entries)
    request.getfixturevalue("forbidden")
    found = Baselines(own, seeds=1)(bowl(), "adamw")
    assert found == shipped.entries[0].measurement
    assert not own.exists()
    changed = BaselineRecord(
        shipped.entries[0].key, "bowl", shipped.entries[0].fingerprint, [], Baselines(seeds=1).shipped[0].measurement
    )
    write_entries(own, [changed])
    assert float(Baselines(own, seeds=1)(bowl(), "adamw").final_train) == pytest.approx(float(found.final_train))
    assert Baselines(own, seeds=1).find(bowl(), "adamw") is not shipped.entries[0]
    with pytest.raises(AssertionError, match="computed although"):
        Baselines(seeds=1, shipped=False)(bowl(), "adamw")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "'format' is missing"),
        ('{"format": 7, "entries": []}', "its format is 7, not 1"),
        ('{"format": 1, "entries": [{}]}', "'key' is missing"),
        ('{"format": 1, "entries": 3}', "not iterable"),
        ('{"format": 1' + "0" * 400 + ', "entries": []}', "its format is 1000"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_damaged_files_get_one_sentence(tmp_path, text, reason):
    path = tmp_path / "baselines.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"baselines.json is not a file of baselines .*; delete it") as caught:
        Baselines(path)
    assert reason in str(caught.value)


def test_damaged_measurements_are_refused(tmp_path):
    path = tmp_path / "baselines.json"
    Baselines(path, seeds=1)(bowl(), "adam_default")
    content = json.loads(path.read_text())
    content["entries"][0]["measurement"]["valid"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="valid must have shape"):
        Baselines(path)


def test_what_diverged_survives_the_file(tmp_path):
    path = tmp_path / "baselines.json"
    known = Baselines(path, seeds=1)
    known(bowl(curvature=300.0, horizon=300), "sgd")
    (entry,) = read_entries(path)
    assert math.inf in entry.sweep
    assert entry.sweep == [pytest.approx(value, rel=1e-5) for value in known.entries[0].sweep]


def test_bad_arguments():
    with pytest.raises(ValueError, match="there is no baseline 'lion'; use one of 'adamw', 'sgd'"):
        Baselines(seeds=1)(bowl(), "lion")
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        Baselines(seeds=0)


def test_sweep_of_one_is_not_tuned():
    assert not Sweep(AdamRule, (1e-3,), "fixed").tuned
