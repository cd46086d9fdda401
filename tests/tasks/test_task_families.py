"""What holds for every family: the same contract, whatever is drawn."""

import json
import math

import pytest
import torch
from torch.func import grad_and_value, vmap

from lightning_lopt.rules import ROLES
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageCNN, ImageMLP, QuadraticFamily, make_families

FAMILIES = ("image_mlp", "image_mlp_plain", "image_cnn", "image_cnn_plain", "quadratic")
SEEDS = range(4)


@pytest.fixture(params=FAMILIES)
def family(request, blobs):
    options = {"variety": not request.param.endswith("plain"), "batch_sizes": (8, 16)}
    if request.param == "quadratic":
        return QuadraticFamily()
    if request.param.startswith("image_mlp"):
        return ImageMLP(blobs, widths=(8, 16), **options)
    return ImageCNN(blobs, channels=(4, 8), **options)


def stack(trees):
    return {key: torch.stack([tree[key] for tree in trees]) for key in trees[0]}


def take(tree, index):
    return {key: value[index] for key, value in tree.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_vmap_equals_loop(family, seed):
    task, gen = family.sample(generator(seed)), generator(seed, "inner")
    params = [task.init(gen) for _ in range(3)]
    batch = task.batch(gen, 3)
    step = grad_and_value(task.loss)
    grads, losses = vmap(step)(stack(params), batch)
    metrics = vmap(task.metrics)(stack(params), batch)
    for index in range(3):
        one_grads, one_loss = step(params[index], take(batch, index))
        torch.testing.assert_close(losses[index], one_loss, rtol=1e-5, atol=1e-5)
        for name, one_grad in one_grads.items():
            torch.testing.assert_close(grads[name][index], one_grad, rtol=1e-5, atol=1e-5)
        for name, value in task.metrics(params[index], take(batch, index)).items():
            torch.testing.assert_close(metrics[name][index], value)


@pytest.mark.parametrize("seed", SEEDS)
def test_same_generator_same_numbers(family, seed):
    def everything():
        task = family.sample(generator(seed))
        params, batch = task.init(generator(seed, 1)), task.batch(generator(seed, 2), 2, 3, split="valid")
        full = {f"full_{key}": value for key, value in task.full_batch("train").items()}
        return task, params | batch | full

    (one, first), (two, second) = everything(), everything()
    assert (one.name, one.config, one.roles) == (two.name, two.config, two.roles)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_axes_in_front_nest(family):
    task, gen = family.sample(generator(0)), generator(1)
    batch = task.batch(gen, 2, 3)
    single = task.batch(generator(2))
    assert all(batch[key].shape == (2, 3, *single[key].shape) for key in batch)
    params = task.init(gen)
    losses = vmap(vmap(lambda b: task.loss(params, b)))(batch)
    torch.testing.assert_close(losses[1, 2], task.loss(params, take(take(batch, 1), 2)))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_full_batch_under_shared_data(family, split):
    task = family.sample(generator(3))
    params = stack([task.init(generator(index)) for index in range(2)])
    losses = vmap(task.loss, in_dims=(0, None))(params, task.full_batch(split))
    assert losses.shape == (2,)
    assert losses.isfinite().all()


def test_roles_cover_the_parameters(family):
    for seed in SEEDS:
        task = family.sample(generator(seed))
        params = task.init(generator(seed))
        assert task.roles.keys() == params.keys()
        assert all(role in ROLES for role in task.roles.values())
        assert all((param.ndim == 1) == (task.roles[name] == "vector") for name, param in params.items())


def test_names_are_unique_and_settings_are_json(family):
    tasks = [family.sample(generator(seed)) for seed in range(20)]
    assert all(task.name.startswith(f"{family.name}/") and task.loss_scale > 0 for task in tasks)
    settings = {task.name: json.dumps(task.config) for task in tasks}
    same_names_same_settings = {(task.name, json.dumps(task.config)) for task in tasks}
    assert len(settings) == len(same_names_same_settings) > 1
    assert json.loads(json.dumps(family.config))["name"] == family.name


@pytest.mark.parametrize("seed", SEEDS)
def test_a_few_adamw_steps_lower_the_loss(family, seed):
    task, gen = family.sample(generator(seed)), generator(seed, "train")
    params = {name: param.requires_grad_() for name, param in task.init(gen).items()}
    optimizer = torch.optim.AdamW(params.values(), lr=0.02, weight_decay=0.0)
    before = task.loss(params, task.full_batch("train")).item()
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(params, task.batch(gen)).backward()
        optimizer.step()
    after = task.loss(params, task.full_batch("train")).item()
    assert after < before - 0.05 * task.loss_scale


def test_an_ignorant_model_has_the_loss_scale(blobs):
    task = ImageMLP(blobs).sample(generator(0))
    zeros = {name: torch.zeros_like(param) for name, param in task.init(generator(0)).items()}
    assert task.loss(zeros, task.full_batch("valid")).item() == pytest.approx(task.loss_scale)
    assert task.loss_scale == pytest.approx(math.log(task.classes))


def test_mixtures(blobs):
    names = [family.name for family in make_families("image+quadratic", blobs)]
    assert names == ["image_mlp", "image_cnn", "quadratic"]
    own = QuadraticFamily(dims=(3,))
    families = make_families([own, "image_mlp"], [blobs])
    assert families[0] is own
    assert families[1].config["data"] == ["blobs"]
    assert make_families(own) == [own]


@pytest.mark.parametrize(
    ("families", "sentence"),
    [
        ("image_vit", "there is no task family 'image_vit'; use one or more of 'image_mlp', .*'image', joined by"),
        ("quadratic+", "there is no task family ''"),
        ([], "no task family is named"),
    ],
)
def test_unknown_families(families, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_families(families)
