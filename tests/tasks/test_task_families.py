"""What holds for every family: the same contract, whatever is drawn."""

import json
import math
import pickle

import pytest
import torch
from family_catalogue import CATALOGUE, words
from task_helpers import check_draws
from torch.func import grad, grad_and_value, vmap

from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.rules import ROLES, AdamRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import FAMILIES, ImageMLP, QuadraticFamily, make_families

SEEDS = range(3)


@pytest.fixture(scope="module", params=CATALOGUE)
def entry(request):
    return CATALOGUE[request.param]


@pytest.fixture(scope="module")
def family(entry, blobs):
    return entry.build(blobs)


def stack(trees):
    return {key: torch.stack([tree[key] for tree in trees]) for key in trees[0]}


def take(tree, index):
    return {key: value[index] for key, value in tree.items()}


def test_the_catalogue_has_every_family():
    assert set(FAMILIES) == {name.removesuffix("_plain") for name in CATALOGUE}


@pytest.mark.parametrize("splits", [("train",), ("train", "valid")], ids="+".join)
def test_many_steps_are_drawn_as_step_by_step(family, splits):
    check_draws(family.sample(generator(1)), splits)


@pytest.mark.parametrize("seed", SEEDS)
def test_vmap_equals_loop(family, seed):
    task, gen = family.sample(generator(seed)), generator(seed, "inner")
    params = [task.init(gen) for _ in range(3)]
    batch = task.batch(gen, 3)
    step = grad_and_value(task.loss)
    torch._C._functorch._set_vmap_fallback_enabled(False)  # no operation may loop over particles
    try:
        grads, losses = vmap(step)(stack(params), batch)
        metrics = vmap(task.metrics)(stack(params), batch)
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
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


@pytest.mark.parametrize("seed", SEEDS)
def test_fresh_parameters(entry, family, seed):
    task, gen = family.sample(generator(seed)), generator(seed, "fresh")
    params, other = task.init(gen), task.init(gen)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in params.values())
    if family.name != "quadratic":
        assert any(not torch.equal(params[name], other[name]) for name in params)
    batch = task.batch(gen)
    assert all(value.dtype in (torch.float32, torch.int64) for value in batch.values())
    grads, loss = grad_and_value(task.loss)(params, batch)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert 0 < sum(value.numel() for value in params.values()) < 60_000
    for name, value in grads.items():
        assert value.isfinite().all(), name
        assert value.any() or (entry.still and name.endswith(entry.still)), name
    for split in ("train", "valid"):
        loss = task.loss(params, task.full_batch(split)).item()
        assert task.loss_scale / 2 < loss < task.loss_scale * entry.at_init, (task.name, split)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_full_batch_under_shared_data(family, split):
    task = family.sample(generator(3))
    params = stack([task.init(generator(index)) for index in range(2)])
    losses = vmap(task.loss, in_dims=(0, None))(params, task.full_batch(split))
    assert losses.shape == (2,)
    assert losses.isfinite().all()
    again = vmap(task.loss, in_dims=(0, None))(params, task.full_batch(split))
    assert torch.equal(losses, again)


def test_held_out_examples_are_not_trained_on(entry, family):
    if entry.examples is None:
        pytest.skip("this family's examples may repeat, or there is no fixed set of them")
    for seed in SEEDS:
        task = family.sample(generator(seed))
        parts = [task.full_batch(split)[entry.examples].flatten(1) for split in ("train", "valid")]
        rows = [{row.numpy().tobytes() for row in part} for part in parts]
        if family.name == "tabular_classification":  # scikit-learn's iris and wine hold a few rows twice
            assert len(rows[0] & rows[1]) <= 2
        else:
            assert not rows[0] & rows[1]


def test_meta_gradients_pass_through_an_inner_step(family):
    """The loss after one step of gradient descent can be differentiated by the learning rate, under vmap."""
    task, gen = family.sample(generator(0)), generator(0, "meta")
    params, batch = stack([task.init(gen) for _ in range(2)]), task.batch(gen, 2)

    def after(lr, params, batch):
        grads = grad(task.loss)(params, batch)
        return task.loss({name: value - lr * grads[name] for name, value in params.items()}, batch)

    slopes = vmap(grad(after))(torch.zeros(2), params, batch)
    grads = vmap(grad(task.loss))(params, batch)
    exact = -sum(value.flatten(1).square().sum(1) for value in grads.values())
    torch.testing.assert_close(slopes, exact, rtol=1e-4, atol=1e-6)


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
    assert len(settings) == len(same_names_same_settings) > (1 if family.name != "celo4" else 0)
    assert json.loads(json.dumps(family.config))["name"] == family.name


def test_tasks_can_be_sent_to_another_process(family):
    task = family.sample(generator(1))
    copy = pickle.loads(pickle.dumps(task))
    params, batch = task.init(generator(2)), task.batch(generator(3))
    assert torch.equal(copy.loss(params, batch), task.loss(params, batch))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_few_adamw_steps_lower_the_loss(entry, family, seed):
    task, gen = family.sample(generator(seed)), generator(seed, "train")
    params = {name: param.requires_grad_() for name, param in task.init(gen).items()}
    optimizer = torch.optim.AdamW(params.values(), lr=entry.lr, weight_decay=0.0)
    before = task.loss(params, task.full_batch("train")).item()
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(params, task.batch(gen)).backward()
        optimizer.step()
    after = task.loss(params, task.full_batch("train")).item()
    assert after < before - 0.05 * task.loss_scale


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_adam_learns_what_held_out_data_confirm(name):
    """At the sizes that meta-training uses: some learning rate lowers both losses within 200 steps."""
    pytest.importorskip("sklearn", reason="the default images come with scikit-learn")
    task = make_families(name)[0].sample(generator(0, "learn"))
    rules = [AdamRule(lr, schedule="cosine") for lr in (1e-3, 1e-2, 3e-2)]
    curves = run_rules(rules, task, horizon=200, seeds=2)
    best = min(curves, key=lambda curve: curve.final_train.nan_to_num(torch.inf).max())
    for split, final in (("train", best.final_train), ("valid", best.final_valid)):
        fresh = [task.loss(task.init(generator(0, "init", seed)), task.full_batch(split)) for seed in range(2)]
        assert final.max() < 0.95 * min(fresh), split


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


def test_broad_is_every_family_on_the_data_given(blobs):
    families = make_families("broad", blobs, words())
    assert [family.name for family in families] == [
        name for name in FAMILIES if name != "celo4" and not name.startswith("finetune_")
    ]
    assert len(families) >= 12
    assert {tuple(f.config["data"]) for f in families if f.name.startswith("image")} == {("blobs",)}
    assert {tuple(f.config["text"]) for f in families if f.name.startswith("char")} == {("words0",)}


@pytest.mark.parametrize(
    ("families", "sentence"),
    [
        ("image_gan", "there is no task family 'image_gan'; use one or more of 'image_mlp', .*'image', .*joined by"),
        ("quadratic+", "there is no task family ''"),
        ([], "no task family is named"),
    ],
)
def test_unknown_families(families, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_families(families)
