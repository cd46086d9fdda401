"""The suite ``real``: sizes, losses before training against theory, what some steps do, and what is held out."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_lopt.evaluation import evaluate
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.evaluation.metrics import step_speedup
from lightning_lopt.evaluation.report.numbers import numbers
from lightning_lopt.evaluation.report.page import page
from lightning_lopt.evaluation.suites import make_suite, real
from lightning_lopt.rules import AdamRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import LabelledImages, Text
from lightning_lopt.tasks.mixed_table import draw_mixed_table

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")
HORIZONS = {
    "python-transformer-0.8m": 2000,
    "python-gru": 2000,
    "parts-resnet-18-half": 400,
    "digits-unet": 2000,
    "digits-flow": 4000,
    "mixed-table": 2000,
    "clicks": 4000,
    "modules-finetune": 2000,
}
STEPS = {
    "python-transformer-0.8m": (8, 3e-3),
    "python-gru": (15, 3e-3),
    "parts-resnet-18-half": (10, 1e-3),
    "digits-unet": (15, 3e-3),
    "digits-flow": (40, 3e-3),
    "mixed-table": (60, 3e-3),
    "clicks": (100, 3e-3),
    "modules-finetune": (30, 3e-3),
}
"""Steps and learning rates of AdamW that lower the loss."""
PRETRAINED = [  # half a minute of pretraining
    pytest.param(name, marks=[pytest.mark.slow] if name == "modules-finetune" else []) for name in HORIZONS
]


@pytest.fixture(scope="module")
def problems():
    return {problem.name: problem for problem in make_suite("real")}


def inner(problem):
    """The task without its pretraining."""
    return getattr(problem.task, "task", problem.task)


def test_eight_problems_of_real_sizes(problems):
    assert {name: problem.horizon for name, problem in problems.items()} == HORIZONS
    parameters = {
        name: sum(math.prod(entry.shape) for entry in inner(problem).layout.entries.values())
        for name, problem in problems.items()
    }
    assert parameters["python-transformer-0.8m"] == pytest.approx(0.82e6, rel=0.02)
    assert parameters["parts-resnet-18-half"] == pytest.approx(11.17e6 / 4, rel=0.01)  # half the width, a quarter
    assert all(count >= 5_000 for count in parameters.values())


@pytest.mark.parametrize("name", HORIZONS)
def test_the_first_loss_is_that_of_a_model_that_knows_little(problems, name):
    task = inner(problems[name])
    scales = {
        "python-transformer-0.8m": math.log(95),
        "python-gru": math.log(95),
        "parts-resnet-18-half": math.log(10),
        "digits-unet": 1.0,  # the variance of standardised pixels
        "digits-flow": 2.0,  # and that of the noise
        "mixed-table": math.log(3),
        "modules-finetune": math.log(8),
    }
    if name in scales:
        assert task.loss_scale == pytest.approx(scales[name], rel=0.01)
    batch = task.batch(generator(0, "batches"), split="valid")
    with torch.no_grad():
        loss = float(task.loss(task.init(generator(0, "init", 0)), batch))
    assert 0.85 * task.loss_scale < loss < 1.4 * task.loss_scale


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_few_steps_lower_the_validation_loss(problems, name):
    task, draws = problems[name].task, generator(0, "batches")
    params = task.init(generator(0, "init", 0))
    leaves = [params[key].requires_grad_() for key in task.roles]
    steps, rate = STEPS[name]
    optimizer = torch.optim.AdamW(leaves, lr=rate)
    measured = task.batch(generator(1, "batches"), split="valid")
    with torch.no_grad():
        before = float(task.loss(params, measured))
    for _ in range(steps):
        grads, _, _ = task.gradient({key: value.detach() for key, value in params.items()}, task.batch(draws))
        for key, leaf in zip(task.roles, leaves, strict=True):
            leaf.grad = grads[key]
        optimizer.step()
    with torch.no_grad():
        assert float(task.loss(params, measured)) < 0.98 * before


@pytest.mark.parametrize("name", PRETRAINED)
def test_problems_are_the_same_every_time(problems, name):
    (again,) = [problem for problem in make_suite("real") if problem.name == name]
    tasks = problems[name].task, again.task
    first, second = (task.init(generator(0, "init", 0)) for task in tasks)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    first, second = (task.batch(generator(0, "batches")) for task in tasks)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["parts-resnet-18-half", "digits-unet", "digits-flow", "mixed-table", "clicks"])
def test_no_example_is_held_out_and_trained_on(problems, name):
    task = problems[name].task
    key = next(key for key in ("inputs", "numbers", "contexts") if key in task.splits["train"])
    train, valid = (task.splits[split][key].flatten(1) for split in ("train", "valid"))
    assert len(train) > len(valid) >= 200
    assert float(torch.cdist(valid, train).min()) > 1e-3


def test_the_fine_tune_has_few_examples_of_text_that_was_not_pretrained_on(problems):
    """Some lines stand in a text more than once."""
    task = problems["modules-finetune"].task
    seen = "".join(map(chr, task.pretraining.task.tokens["train"].tolist()))
    few, others = (
        ["".join(map(chr, piece)) for piece in task.full_batch(split)["inputs"].tolist()]
        for split in ("train", "valid")
    )
    assert (len(few), len(others)) == (320, 512)
    assert sum(piece in seen for piece in (*few, *others)) < 0.05 * 832
    assert sum(piece in others for piece in few) < 0.05 * 320


def test_text_is_held_out_of_every_module(problems):
    train, valid = (problems["python-gru"].task.tokens[split] for split in ("train", "valid"))
    assert len(valid) == pytest.approx(len(train) / 9, rel=0.001)
    assert len(train) > 500_000
    seen = "".join(map(chr, train.tolist()))
    pieces = ["".join(map(chr, piece)) for piece in valid.unfold(0, 64, 640).tolist()]
    assert sum(piece in seen for piece in pieces) < 0.05 * len(pieces)


def test_no_network_can_learn_the_table_to_the_end(problems):
    """The classes of held-out rows are random too."""
    _, chances = draw_mixed_table(generator(0, "real", "table"), 6000, (3, 5, 8, 20, 50, 200), 8, 3)
    entropy = float(-(chances * chances.log()).sum(1).mean())
    assert 0.4 * problems["mixed-table"].task.loss_scale < entropy < 0.9 * problems["mixed-table"].task.loss_scale


def test_large_images_are_used_and_small_ones_replaced_for_the_residual_network():
    draws = torch.Generator().manual_seed(0)
    coloured = LabelledImages(torch.rand(80, 3, 40, 40, generator=draws), torch.arange(80) % 4, 4, "coloured")
    alone = {problem.name: problem for problem in make_suite("real", coloured)}
    assert "parts-resnet-18-half" not in alone
    assert alone["coloured-resnet-18-half"].task.splits["train"]["inputs"].shape[1:] == (3, 32, 32)
    assert alone["coloured-unet"].task.splits["train"]["inputs"].shape[1:] == (3, 16, 16)
    both = [problem.name for problem in make_suite("real", ["digits", coloured])]
    assert len(set(both)) == len(both) == 11
    assert {"coloured-resnet-18-half", "parts-resnet-18-half"} < set(both)


def test_a_text_of_the_users():
    text = Text.from_string("to be or not to be, " * 200, "hamlet")
    problems = {problem.name: problem for problem in real.problems([real.synthetic_images()], text)}
    assert problems["hamlet-gru"].task.loss_scale == pytest.approx(math.log(len(text.alphabet)))
    assert {"hamlet-transformer-0.8m", "modules-finetune"} < problems.keys()


def test_a_report_has_steps_and_seconds_of_both_splits(problems):
    short = [replace(problems["clicks"], horizon=40)]
    baselines = Baselines(seeds=1, shipped=False)
    results = evaluate({"adam": AdamRule()}, short, ("adam_default",), baselines=baselines, suite="real")
    (problem,) = results.problems
    assert problem.gradient_seconds > 0
    assert problem.step_seconds.keys() == {"adam", "adam_default"}
    assert problem.paired_runs("adam", "adam_default").step_cost > 0
    found = numbers(results)
    assert {"speedup", "wall_clock", "train_ratio", "valid_ratio"} <= {number.metric for number in found}
    assert "suite real, 1 problem, 1 seed each" in page(results, found, {})


def test_speedups_of_the_policy_are_neutral(problems):
    """Its training curve is noise around 0, which is below the level at which losses count as equal."""
    short = replace(problems["clicks"], horizon=400)
    slow, fast = run_rules([AdamRule(3e-4), AdamRule(3e-3)], short, seeds=1)
    assert float(fast.final_train) < 0.8 * float(slow.final_train)
    for ours, reference in ((fast, slow), (slow, fast)):
        assert float(step_speedup(ours, reference, short.task.loss_scale)) == 1.0
