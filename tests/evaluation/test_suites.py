"""The problems of the suites: what each promises to be."""

import math

import pytest
import torch

from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.evaluation.suites import SUITES, Problem, long_runs, make_suite
from lightning_lopt.evaluation.suites.small import fine_tuning
from lightning_lopt.evaluation.suites.sources import halves
from lightning_lopt.rules import AdamRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import FAMILIES, LabelledImages, load_digits_data

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")
ON_CPU = [name for name in SUITES if name not in ("gpu", "real")]  # test_suite_real.py has the latter
FIRST_LOSS = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "finetune" else [])  # a minute of pretraining
    for name in ON_CPU
]


@pytest.fixture(scope="module")
def suites():
    return {name: make_suite(name) for name in SUITES}


def parameters(problem):
    return sum(math.prod(entry.shape) for entry in inner(problem.task).layout.entries.values())


def inner(task):
    while hasattr(task, "task"):
        task = task.task
    return task


def named(problems, ending):
    (found,) = [problem for problem in problems if problem.name.endswith(ending)]
    return found


@pytest.mark.parametrize("name", SUITES)
def test_problems_have_names_families_and_data(suites, name):
    problems = suites[name]
    assert len({problem.name for problem in problems}) == len(problems)
    for problem in problems:
        assert problem.family in (*FAMILIES, "")
        assert problem.data
        assert problem.task.loss_scale > 0


def test_sizes_and_horizons(suites):
    assert len(suites["tiny"]) == 3
    assert len(suites["small"]) >= 12
    assert all(200 <= problem.horizon <= 500 for problem in suites["small"])
    assert all(parameters(problem) <= 30_000 for name in ON_CPU for problem in suites[name])
    assert [problem.horizon for problem in suites["long"]] == [10_000, 10_000, 10_000, 25_000]
    assert {problem.horizon for problem in long_runs(70)} == {70}


def test_small_has_every_kind_of_model(suites):
    families = {problem.family for problem in suites["small"]}
    assert families >= {f"image_{kind}" for kind in ("mlp", "cnn", "resnet", "vit", "mixer", "autoencoder", "vae")}
    assert families >= {"char_rnn", "char_transformer", "tabular_classification", "tabular_regression"}


@pytest.mark.parametrize("name", FIRST_LOSS)
def test_the_first_loss_and_gradient_are_finite_and_the_same_every_time(suites, name):
    again = make_suite(name)
    for problem, other in zip(suites[name], again, strict=True):
        results = []
        for task in (problem.task, other.task):
            params = task.init(generator(0, "init", 0))
            results.append(task.gradient(params, task.batch(generator(0, "batches"))))
            assert task.loss(params, task.full_batch("valid")).isfinite()
        (grads, loss, _), (other_grads, other_loss, _) = results
        assert torch.equal(loss, other_loss), problem.name
        for key, grad in grads.items():
            assert grad.isfinite().all(), problem.name
            assert torch.equal(grad, other_grads[key]), problem.name


def test_large_images_are_shrunk_and_several_sets_share_what_needs_none():
    draws = torch.Generator().manual_seed(0)
    coloured = LabelledImages(torch.rand(80, 3, 20, 20, generator=draws), torch.arange(80) % 4, 4, "coloured")
    both, one = make_suite("small", ["digits", coloured]), make_suite("small")
    added = {problem.name for problem in both} - {problem.name for problem in one}
    assert {name.split("-")[0] for name in added} == {"coloured"}
    assert len(added) == 9
    mlp = named([problem for problem in both if problem.data == "coloured"], "-mlp").task
    assert mlp.full_batch("train")["inputs"].shape[1:] == (3, 16, 16)
    assert {name for problem in make_suite("tiny", coloured) for name in [problem.data]} == {"coloured", "argparse"}


def test_fine_tuning_problems_have_few_examples_and_a_pretrained_body(suites):
    problems = suites["finetune"]
    assert 8 <= len(problems) <= 12
    assert all(200 <= problem.horizon <= 1000 for problem in problems)
    assert sum(problem.task.rank > 0 for problem in problems) >= 2
    assert sum(bool(problem.task.frozen) and not problem.task.rank for problem in problems) >= 2
    for problem in problems:
        assert problem.task.head, problem.name
        if "inputs" in (batch := problem.task.full_batch("train")):
            assert len(batch["inputs"]) <= 64, problem.name
    assert {problem.family for problem in problems} == {"finetune_image", "finetune_text", "finetune_student"}


def test_columns_over_six_decades(suites):
    inputs = named(suites["small"], "badly-scaled").task.full_batch("train")["inputs"]
    deviations = inputs.std(0)
    assert float(deviations.max() / deviations.min()) == pytest.approx(1e6, rel=0.05)


def test_fine_tuning_starts_from_what_training_left():
    """The body is the same in every run, the head is not, and the start is worth something."""
    train, valid = halves(load_digits_data())
    task = fine_tuning(train, valid)
    one, other = (task.init(generator(seed)) for seed in (0, 1))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"layers.2.weight", "layers.2.bias"}
    tuned, fresh = (
        run_rules([AdamRule(3e-3)], one, horizon=60, seeds=3)[0].final_valid.median() for one in (task, task.task)
    )
    assert tuned < 0.9 * fresh


def test_shifts_are_what_they_are_called(suites):
    problems = suites["shift"]
    train, valid = halves(load_digits_data())
    batch = {problem.name: problem.task.batch(generator(0)) for problem in problems}
    assert len(batch["digits-tiny-batches"]["targets"]) == 2
    assert len(batch["digits-huge-batches"]["targets"]) == 1024
    large, small = (named(problems, name).task.init(generator(0)) for name in ("large-weights", "small-weights"))
    torch.testing.assert_close(large["layers.1.weight"], 50 * small["layers.1.weight"])
    frozen = named(problems, "frozen-half").task
    assert len(frozen.roles) == len(frozen.init(generator(0))) / 2
    noisy = named(problems, "noisy-labels").task.full_batch("train")
    label = {
        tuple(x.flatten().tolist()): int(y) for part in (train, valid) for x, y in _pairs(part.inputs, part.targets)
    }
    counts = torch.zeros(10, 10)
    for x, y in _pairs(noisy["inputs"], noisy["targets"]):
        counts[label[tuple(x.flatten().tolist())], y] += 1
    # classes are numbered anew, so a row's largest count is that of the right label; a tenth of the drawn are right too
    assert float(counts.max(1).values.sum() / counts.sum()) == pytest.approx(0.6 + 0.4 * 0.1, abs=0.04)


def _pairs(inputs, targets):
    return zip(inputs, targets, strict=True)


def test_changed_data_are_inverted_before_the_change(suites):
    problem = named(suites["shift"], "changed-data")
    task, batch = problem.task, problem.task.batch(generator(0))
    assert task.change == problem.horizon // 2
    before, after = batch[task.entry_name("inputs")], batch["inputs"]
    pixels = [
        x.sort(-1).values
        for x in (
            task.before.full_batch("train")["inputs"].flatten(1),
            task.task.full_batch("train")["inputs"].flatten(1),
        )
    ]
    torch.testing.assert_close(-pixels[0].flip(-1), pixels[1])
    assert before.shape == after.shape


def test_models_for_a_device_have_the_size_they_are_called(suites):
    """Counted from shapes: no tensor of them is made."""
    millions = {problem.name.partition("-")[2]: parameters(problem) / 1e6 for problem in suites["gpu"]}
    assert millions["vit-s"] == pytest.approx(21.3, abs=0.3)
    assert millions["resnet-18"] == pytest.approx(11.17, abs=0.01)
    assert 10 < millions["transformer-10m"] < 30


def test_unknown_suite():
    with pytest.raises(ValueError, match="there is no suite 'huge'; use one of 'tiny', 'small'"):
        make_suite("huge")
    assert isinstance(make_suite("tiny")[0], Problem)
