"""Tables, teachers, least squares and categories: what is known in closed form, and what is refused."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jacrev

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    Categorical,
    CategoricalTask,
    Celo4,
    ImageResNet,
    LabelledImages,
    LeastSquares,
    Table,
    TabularClassification,
    TabularRegression,
    TabularTask,
    Teacher,
    load_table,
)
from lightning_lopt.tasks.synthetic_tables import draw_class_table, draw_value_table
from lightning_lopt.tasks.tabular import with_noise

X = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 5.0, 0.0] + 3.0
CLASSES, VALUES = np.arange(40) % 4, np.random.default_rng(1).normal(size=(40, 2))


def test_a_table_is_what_was_given():
    table = Table.from_arrays(X, CLASSES, "toy")
    assert (table.inputs.dtype, table.targets.dtype, table.classes, table.outputs) == (
        torch.float32,
        torch.int64,
        4,
        4,
    )
    values = Table.from_arrays(X.astype(np.float32), VALUES, "toy")
    assert (values.targets.dtype, values.classes, values.outputs) == (torch.float32, 0, 2)
    assert Table.from_arrays(X, VALUES[:, 0]).targets.shape == (40, 1)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (X[0], CLASSES, r"inputs are float64 of shape \(3,\); give numbers of shape \(N, D\)"),
        (X.astype(str), CLASSES, "inputs are <U"),
        (X, CLASSES[:, None], r"targets are int64 of shape \(40, 1\)"),
        (X, CLASSES[:9], "40 rows but 9 targets"),
        (X, CLASSES * 0, "classes run from 0 to 0; number two or more classes from 0"),
        (X, CLASSES - 1, "classes run from -1 to 2"),
        (X * np.nan, CLASSES, "the table holds NaN or infinite values"),
        (X, VALUES * np.inf, "the table holds NaN or infinite values"),
    ],
)
def test_bad_tables_are_refused(x, y, sentence):
    with pytest.raises(ValueError, match=f"^toy: .*{sentence}"):
        Table.from_arrays(x, y, "toy")


def test_splits_are_standardised_by_the_training_rows():
    train, valid = Table.from_arrays(X, VALUES, "toy").split(0.25, generator(0), None)
    assert (len(train), len(valid)) == (30, 10)
    for part in (train.inputs[:, :2], train.targets):
        torch.testing.assert_close(part.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(part.square().mean(0), torch.ones(2))
    assert not train.inputs[:, 2].any()  # a constant column
    assert valid.inputs[:, :2].mean(0).abs().max() > 0.01
    order = torch.randperm(40, generator=generator(0))
    rows = torch.tensor(X, dtype=torch.float32)[order[10:]]
    again = (torch.tensor(X, dtype=torch.float32)[order[:10]] - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(valid.inputs[:, :2], again[:, :2])


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("breast_cancer", (569, 30), 2), ("wine", (178, 13), 3), ("diabetes", (442, 10), 0)]
)
def test_embedded_tables(name, shape, classes):
    pytest.importorskip("sklearn", reason="these tables come with scikit-learn")
    table = load_table(name)
    assert (tuple(table.inputs.shape), table.classes, table.name) == (shape, classes, name)


def test_without_scikit_learn_tables_are_synthetic(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert TabularRegression().config["data"] == ["synthetic"]
    with pytest.raises(
        ImportError, match=r'pip install -e "\.\[examples\]" in the checkout of lightning_lopt, or use .synthetic.'
    ):
        TabularClassification("wine")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: TabularClassification("mnist"),
            "there is no table 'mnist'; use one of 'breast_cancer', .*'synthetic'",
        ),
        (lambda: TabularClassification([]), "data is an empty list"),
        (lambda: TabularClassification(Table.from_arrays(X, VALUES, "toy")), "toy: the table has values, which"),
        (lambda: TabularRegression(Table.from_arrays(X, CLASSES, "toy")), "toy: the table has classes, which"),
        (lambda: Categorical(depths=(-1,)), r"depths must be a sequence of integers >= 0, .* got \(-1,\)"),
        (lambda: LeastSquares(conditions=(0.5,)), "conditions must be numbers >= 1"),
        (lambda: Teacher(init_scales=(2.0, 1.0)), "init_scales must be two numbers > 0, the smaller one first"),
    ],
)
def test_wrong_options(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("seed", range(8))
def test_synthetic_tables(seed):
    classes, values = draw_class_table(generator(seed)), draw_value_table(generator(seed))
    for table in (classes, values):
        assert 200 <= len(table) <= 4000
        assert 4 <= table.inputs.shape[1] <= 32
        assert table.inputs.isfinite().all()
        assert table.inputs.dtype == torch.float32
    assert 2 <= classes.classes <= 6
    assert classes.targets.max() < classes.classes
    assert (values.targets.std(0) > 0.05).all()
    # something can be learned: neighbours are alike. Leave-one-out nearest neighbour beats the most frequent class.
    x = classes.inputs[:400].argsort(0).argsort(0).float()
    nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1)
    y = classes.targets[:400]
    assert (y[nearest] == y).float().mean() > y.bincount().max() / len(y)


@pytest.mark.parametrize(
    ("objective", "reference"),
    [("squared", lambda e: e.square()), ("huber", lambda e: torch.where(e.abs() < 1, e.square() / 2, e.abs() - 0.5))],
)
def test_regression_losses_and_their_scale(objective, reference):
    train, valid = Table.from_arrays(X, 3 * VALUES + 1, "toy").cut(10)
    task = TabularTask(train, valid, (5,), objective)
    params, batch = task.init(generator(0)), task.batch(generator(1))
    hidden = torch.relu(batch["inputs"] @ params["layers.0.weight"].T + params["layers.0.bias"])
    answers = hidden @ params["layers.1.weight"].T + params["layers.1.bias"]
    torch.testing.assert_close(task.loss(params, batch), reference(answers - batch["targets"]).mean())
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    zeros["layers.1.bias"] = train.targets.mean(0)
    assert task.loss(zeros, task.full_batch("train")).item() == pytest.approx(task.loss_scale, rel=1e-5)
    assert task.metrics(params, batch) == {}


def test_classification_scale_and_accuracy():
    train, valid = Table.from_arrays(X, CLASSES, "toy").cut(10)
    task = TabularTask(train, valid, (), "cross_entropy")
    params = {name: torch.zeros_like(value) for name, value in task.init(generator(0)).items()}
    assert task.loss_scale == pytest.approx(math.log(4))
    assert task.loss(params, task.full_batch("train")).item() == pytest.approx(math.log(4))
    params["layers.0.bias"][3] = 1.0
    assert task.metrics(params, task.full_batch("train"))["accuracy"] == (train.targets == 3).float().mean()


def test_noise_hits_its_share():
    many = Table(torch.ones(8000, 1), torch.arange(8000) % 4, 4, "many")
    changed = (with_noise(many, 0.4, generator(0)).targets != many.targets).float().mean().item()
    assert changed == pytest.approx(0.4 * 3 / 4, abs=0.02)  # a quarter of the draws hits the right class
    values = Table(torch.ones(8000, 1), torch.zeros(8000, 2), 0, "many")
    assert with_noise(values, 0.4, generator(0)).targets.std().item() == pytest.approx(0.4, rel=0.03)


def test_named_tables_are_half_of_the_tasks():
    table = Table.from_arrays(X, CLASSES, "toy")
    family = TabularClassification([table, "synthetic"], batch_sizes=(5,), depths=(1,), widths=(7,))
    names = [family.sample(generator(seed)).config["data"] for seed in range(40)]
    assert 10 < names.count("toy") < 30
    assert {TabularClassification(table).sample(generator(seed)).config["data"] for seed in range(5)} == {"toy"}


@pytest.mark.parametrize("seed", range(6))
def test_a_student_at_the_teachers_weights_is_right(seed):
    family = Teacher(ratios=(1.0,), widths=(4, 8), examples=(500, 600))
    task = family.sample(generator(seed))
    assert {name: value.shape for name, value in task.teacher.items()} == {
        name: value.shape for name, value in task.init(generator(0)).items()
    }
    noise = task.config["teacher"]["noise"]
    for split in ("valid",) if noise else ("train", "valid"):
        batch = task.full_batch(split)
        if task.classes:
            assert task.metrics(task.teacher, batch)["accuracy"] == 1.0
        else:
            assert task.loss(task.teacher, batch) < 1e-10
            assert batch["targets"].var(0).mean().item() == pytest.approx(1.0, rel=0.5)
    if noise and not task.classes:
        half = 0.5 if task.config["objective"] == "huber" else 1.0
        expected = half * noise**2
        assert task.loss(task.teacher, task.full_batch("train")).item() == pytest.approx(expected, rel=0.2)


def test_students_may_be_wider_or_narrower():
    family = Teacher(ratios=(2.0,), widths=(5,), depths=(2,), dims=(3,), outputs=(2,), decays=(1.0,))
    task = family.sample(generator(0))
    assert [tuple(value.shape) for name, value in task.init(generator(0)).items() if "weight" in name] == [
        (10, 3),
        (10, 10),
        (2, 10),
    ]
    assert task.teacher["layers.0.weight"].shape == (5, 3)
    deviations = task.full_batch("valid")["inputs"].std(0)
    torch.testing.assert_close(deviations, torch.tensor([1.0, 1 / 2, 1 / 3]), rtol=0.1, atol=0)


@pytest.mark.parametrize("condition", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("outputs", [1, 3])
def test_least_squares_has_the_condition_number_it_says(condition, outputs):
    family = LeastSquares((6,), (outputs,), (condition,), ratios=(5,), noises=(0.1,))
    task = family.sample(generator(0))
    params, data = task.init(generator(1)), task.full_batch("train")
    curvature = jacrev(grad(lambda weight: task.loss({"weight": weight}, data)))(params["weight"])
    eigenvalues = torch.linalg.eigvalsh(curvature.reshape(6 * outputs, 6 * outputs).double())
    expected = condition ** -torch.linspace(1, 0, 6, dtype=torch.float64).repeat_interleave(outputs) / outputs
    torch.testing.assert_close(eigenvalues, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_least_squares_optimum(seed):
    task = LeastSquares((4, 8), conditions=(1.0, 1e2), noises=(0.2,), ratios=(16,)).sample(generator(seed))
    best, data = task.optimum(), task.full_batch("train")
    x, y = data["inputs"].double(), data["targets"].double()
    normal_equations = torch.linalg.solve(x.T @ x, x.T @ y).T
    torch.testing.assert_close(best["weight"].double(), normal_equations, rtol=1e-4, atol=1e-4)
    loss = task.loss(best, data).item()
    gradient = grad(task.loss)(best, data)["weight"]
    assert gradient.abs().max() < 1e-5
    assert loss == pytest.approx(0.5 * 0.04 * (1 - 1 / 16), rel=0.3)  # noise less what D of N rows can explain
    assert task.loss(best, task.full_batch("valid")).item() == pytest.approx(0.5 * 0.04, rel=0.4)
    zero = {"weight": torch.zeros_like(best["weight"])}
    assert task.loss(zero, data).item() == pytest.approx(task.loss_scale)
    assert task.loss_scale == pytest.approx(0.5 * 1.04, rel=0.35)
    assert task.roles == {"weight": "matrix"}


def test_alignment_says_which_directions_matter():
    def share(alignment):
        """Of the loss at zero, what is left after the two steepest of eight directions are solved."""
        family = LeastSquares((8,), (200,), (1e4,), (alignment,), (8,), (0.0,), init_scales=(1.0, 1.0))
        task = family.sample(generator(0))
        x, y = (task.full_batch("train")[key].double() for key in ("inputs", "targets"))
        left = torch.linalg.svd(x, full_matrices=False).U[:, :2]
        return ((y - left @ (left.T @ y)).square().sum() / y.square().sum()).item()

    assert share(0.0) < 0.2
    assert share(1.0) == pytest.approx(6 / 8, abs=0.05)


@pytest.mark.parametrize("combination", ["concatenate", "sum"])
def test_categories_are_looked_up_and_joined(combination):
    inputs = torch.tensor([[0, 3], [2, 4]])
    table = Table(inputs, torch.tensor([0, 1]), 2, "toy")
    task = CategoricalTask(table, table, 5, 3, combination, widths=())
    params = task.init(generator(0))
    rows = F.embedding(inputs, params["embedding.weight"])
    joined = torch.cat([rows[:, 0], rows[:, 1]], 1) if combination == "concatenate" else rows[:, 0] + rows[:, 1]
    expected = F.linear(joined, params["layers.0.weight"], params["layers.0.bias"])
    torch.testing.assert_close(task.logits(params, inputs), expected)
    assert (task.roles["embedding.weight"], task.roles["layers.0.weight"]) == ("embedding", "head")
    grads = grad(task.loss)(params, task.full_batch("train"))
    assert not grads["embedding.weight"][1].any()  # a category that no row has
    assert grads["embedding.weight"][[0, 2, 3, 4]].any(1).all()


def test_categories_follow_zipfs_law_and_stay_in_their_column():
    family = Categorical(columns=(3,), categories=(20, 20))
    for seed in range(6):
        task = family.sample(generator(seed))
        ids = torch.cat([task.full_batch(split)["inputs"] for split in ("train", "valid")])
        low = torch.tensor([0, 20, 40])
        assert ((ids >= low) & (ids < low + 20)).all()
        frequency = torch.arange(1.0, 21) ** -task.config["source"]["exponent"]
        counts = (ids - low).flatten().bincount(minlength=20) / ids.numel()
        torch.testing.assert_close(counts, frequency / frequency.sum(), rtol=0, atol=0.03)


def test_celo4_is_what_the_papers_describe():
    rng, labels = np.random.default_rng(0), np.arange(60) % 10
    grey = LabelledImages.from_arrays(rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), labels, "grey")
    colour = LabelledImages.from_arrays(rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), labels, "rgb")
    family = Celo4([grey, colour])
    assert family.config["data"] == ["grey", "rgb"]
    tasks = {task.config["data"]: task for task in (family.sample(generator(seed)) for seed in range(8))}
    assert {task.name for task in tasks.values()} == {f"celo4/{name}/64-32-10/relu/b64" for name in ("grey", "rgb")}
    for name, source in (("grey", grey), ("rgb", colour)):
        task = tasks[name]
        inputs = torch.cat([task.full_batch(split)["inputs"] for split in ("train", "valid")])
        assert inputs.shape == (60, 1, 8, 8)
        expected = F.adaptive_avg_pool2d(source.inputs, 8).mean(1, keepdim=True)
        torch.testing.assert_close(inputs.sum((1, 2, 3)).sort()[0], expected.sum((1, 2, 3)).sort()[0])
        assert 0 <= inputs.min() < inputs.max() <= 1
        params = task.init(generator(0))
        assert params["layers.0.weight"].shape == (32, 64)
        assert params["layers.0.weight"].abs().max() <= 2 / 8
        assert params["layers.0.weight"].std().item() == pytest.approx(0.88 / 8, rel=0.1)
        assert not params["layers.0.bias"].any()


def test_large_images_are_shrunk_and_small_ones_left(blobs):
    big = blobs.resized(20)
    assert {source.shape for source in ImageResNet([big, blobs]).sources} == {(1, 16, 16), (1, 6, 6)}
    assert ImageResNet(big, max_size=None).sources[0].shape == (1, 20, 20)
    assert ImageResNet(big, size=5).sources[0].shape == (1, 5, 5)
