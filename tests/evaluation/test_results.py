"""results.json: there and back, and what is not one."""

import json

import pytest
import torch
from made_runs import made_results

from lightning_lopt import ResidualRule
from lightning_lopt.evaluation.results import Results, RuleRecord, checked_training
from lightning_lopt.io import load_meta_training, load_rule, weights_sha256
from lightning_lopt.tasks import FAMILIES, make_families
from lightning_lopt.tasks.task_mixture import TaskMixture


def changed(path, **entries):
    """A results.json with some entries of its object, or of its first problem, replaced."""
    content = made_results().to_json()
    for key, value in entries.items():
        place = content if key in content else content["problems"][0]
        place[key] = value
    path.write_text(json.dumps(content))
    return path


def test_there_and_back(tmp_path):
    before = made_results()
    before.save(tmp_path / "new" / "results.json")
    after = Results.load(tmp_path / "new" / "results.json")
    assert after.to_json() == before.to_json()
    assert after.seeds == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]
    ours, again = (results.problems[3].measurements["other"] for results in (before, after))
    assert torch.equal(ours.train.isfinite(), again.train.isfinite())
    torch.testing.assert_close(again.valid[:8], ours.valid[:8], rtol=1e-5, atol=0)


def test_log_ratio_of_medians_by_hand():
    problem = made_results().problems[0]
    ours, reference = (problem.measurements[name].final_train.double() / 2.0 + 0.01 for name in ("ours", "adamw"))
    assert problem.log_ratio("ours", "adamw") == pytest.approx(float((ours / reference).log().median()))
    assert problem.paired_runs("ours", "adamw").step_cost == pytest.approx((0.002 + 0.001) / (0.002 + 0.003))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"format": "other"}, "the format is 'other'"),
        ({"format_version": 2}, "version 2, instead of"),
        ({"problems": []}, "at least one rule and one problem"),
        ({"problems": 3}, "problems must be a list"),
        ({"problems": [{}] * 1001}, "at most 1000"),
        ({"rules": {}}, "at least one rule"),
        ({"rules": {"ours": 1}}, "a rule must be an object"),
        ({"against": ["sgd"]}, "no measurement of 'sgd'"),
        ({"against": ["ours"]}, "has the name of a baseline"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"command": "x" * 20_001}, "command must be a text"),
        ({"environment": {"torch": [1]}}, "a text of at most"),
        ({"horizon": 251}, "the horizons of 'problem 0' and 'ours' differ: 251"),
        ({"loss_scale": 0}, "must be a positive number"),
        ({"loss_scale": None}, "must be a positive number"),
        ({"measurements": {}}, "no measurement of"),
        ({"measurements": [1]}, "must be an object"),
        ({"step_seconds": {"ours": -1}}, "must be a positive number"),
        ({"gradient_seconds": "soon"}, "must be a positive number"),
        ({"name": "problem 1"}, "two problems have the same name"),
        ({"parameters": 1.5}, "parameters must be a whole number"),
    ],
    ids=str,
)
def test_what_is_no_results_file_is_refused_in_one_sentence(entries, says, tmp_path):
    with pytest.raises(ValueError, match=says) as refused:
        Results.load(changed(tmp_path / "results.json", **entries))
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "results.json"))
    assert message.endswith("make them again.")
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b'{"a": NaN}', "not a finite number"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "more than 20 characters"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "no such file"),
    ],
    ids=str,
)
def test_damaged_files_are_refused(data, says, tmp_path):
    path = tmp_path / "results.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=says):
        Results.load(path)


def test_huge_files_are_not_read(tmp_path):
    path = tmp_path / "results.json"
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match="more than"):
        Results.load(path)


def test_seeds_that_differ_are_refused(tmp_path):
    content = made_results().to_json()
    content["problems"][0] = made_results(1, seeds=2).to_json()["problems"][0]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="number of seeds"):
        Results.load(tmp_path / "results.json")


def test_a_rule_in_memory_and_its_record():
    rule = load_rule("base")
    record = RuleRecord.of(rule, load_meta_training("base"), "base")
    assert record.weights_sha256 == weights_sha256(rule)
    assert record.meta_parameters == 71
    assert record.trained_on["horizons"] == [100, 3000]
    assert "image_mixer" in record.trained_on["families"]
    assert "image_vit" not in record.trained_on["families"]
    assert "digits" in record.trained_on["data"]
    assert "digits-vit" in record.trained_on["chosen_on"]
    assert RuleRecord.from_json(json.loads(json.dumps(vars(record)))) == record
    broken = ResidualRule()
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    assert RuleRecord.of(broken).weights_sha256 == ""


@pytest.mark.parametrize(
    "content", [{"families": "image_mlp"}, {"data": [1]}, {"horizons": [1]}, {"horizons": ["a", "b"]}, [1]], ids=str
)
def test_odd_records_of_meta_training_are_refused(content):
    with pytest.raises(ValueError, match=r"must be|is missing"):
        checked_training(content)


def test_a_mixture_says_what_it_draws_from():
    trained_on = TaskMixture(make_families("celo4+char_rnn+quadratic+tabular_regression")).trained_on
    assert trained_on["families"] == ["celo4", "char_rnn", "image_mlp", "quadratic", "tabular_regression"]
    assert {"digits", "argparse", "diabetes", "synthetic"} <= set(trained_on["data"])
    everything = TaskMixture(make_families("+".join(FAMILIES))).trained_on
    assert everything["families"] == sorted(FAMILIES)
