"""Transforms against closed forms and plain loops, alone, on top of each other, and through an outer step."""

import json
import math
from collections import Counter

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from task_helpers import check_draws
from torch.func import functional_call, grad, vmap

from lightning_lopt import PES, AdamRule, MetaTrainer, ResidualRule, SGDRule, StepContext, TaskDataModule
from lightning_lopt.meta import start_runs, unroll
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic, QuadraticFamily
from lightning_lopt.tasks.transforms import (
    Augmented,
    ChangingDataTask,
    DelayedGradients,
    DelayedGradientTask,
    FrozenTask,
    FrozenTensors,
    GivenStartTask,
    GradientNoise,
    HeavyTailedGradientTask,
    LowPrecision,
    LowPrecisionTask,
    NoisyGradientTask,
    Reparametrise,
    ReparametrisedTask,
    SmallerBatch,
    SmallerBatchTask,
    TransformedTask,
    augment,
)
from lightning_lopt.tasks.transforms.gradients import rounded_to


class TurnedLabels(TransformedTask):
    """The task with its classes numbered the other way round: other data of the same shapes."""

    def __init__(self, task):
        super().__init__(task, "turned", {"name": "turned"})

    def look_up(self, drawn, split="train"):
        batch = super().look_up(drawn, split)
        return batch | {"targets": self.task.classes - 1 - batch["targets"]}


RESIDUAL = ResidualRule()
CURVATURE = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
ALL = {
    "reparam": lambda task: ReparametrisedTask(task, 30.0),
    "reparam_each": lambda task: ReparametrisedTask(task, {n: 0.1 * (i + 1) for i, n in enumerate(task.roles)}),
    "noise": lambda task: NoisyGradientTask(task, 0.5),
    "bfloat16": lambda task: LowPrecisionTask(task, "bfloat16"),
    "int8": lambda task: LowPrecisionTask(task, "int8"),
    "delay": lambda task: DelayedGradientTask(task, 2),
    "smaller": lambda task: SmallerBatchTask(task, 5),
    "frozen": lambda task: FrozenTask(task, ["layers.0.weight"]),
    "heavy_tails": lambda task: HeavyTailedGradientTask(task, 0.5),
    "start": lambda task: GivenStartTask(task, {"layers.0.bias": torch.ones(8)}),
    "changing": lambda task: ChangingDataTask(task, TurnedLabels(task), 2),
    "stack": lambda task: LowPrecisionTask(
        NoisyGradientTask(
            DelayedGradientTask(ReparametrisedTask(FrozenTask(SmallerBatchTask(task, 5), ["layers.0.bias"]), 2.0), 1),
            0.1,
        ),
        "float16",
    ),
}


@pytest.fixture
def mlp(blobs):
    return ImageMLP(blobs, depths=(1,), widths=(8,), batch_sizes=(16,), variety=False).sample(generator(0))


@pytest.fixture(params=ALL)
def transformed(request, mlp):
    return ALL[request.param](mlp)


@pytest.mark.parametrize("splits", [("train",), ("train", "valid")], ids="+".join)
def test_many_steps_are_drawn_as_step_by_step(transformed, splits):
    check_draws(transformed, splits)


def engine(task, rule, steps, pairs=1, copies=1, seed=0):
    """Runs after ``steps`` steps at the rule's own θ, and the losses."""
    theta = {name: torch.stack([value.detach()] * pairs * copies) for name, value in rule.named_parameters()}
    runs = start_runs(rule, task, pairs=pairs, horizon=steps, seed=seed, copies=copies)
    with torch.no_grad():
        runs, losses = unroll(rule, theta, runs, steps, generator(seed, "batches"))
    return runs, losses[0]


def take(tree, index):
    return {name: value[index] for name, value in tree.items()}


@pytest.mark.parametrize("scale", [0.25, 8.0, {"x": 0.5}])
def test_reparametrised_gradient_descent_is_another_learning_rate(scale):
    """Steps of η in u = p / s are steps of η s² in p; with s a power of two the losses are the same bits."""
    plain, s = Quadratic(CURVATURE, noise=0.1), scale["x"] if isinstance(scale, dict) else scale
    task = ReparametrisedTask(plain, scale)
    batch, u = task.batch(generator(1)), task.init(generator(0))
    assert torch.equal(u["x"] * s, plain.init(generator(0))["x"])
    assert torch.equal(task.loss(u, batch), plain.loss(plain.init(generator(0)), batch))
    grads, loss, carried = task.gradient(u, batch)
    assert torch.equal(grads["x"], s * grad(plain.loss)(plain.init(generator(0)), batch)["x"])
    torch.testing.assert_close(grads["x"], grad(task.loss)(u, batch)["x"])
    assert (torch.equal(loss, task.loss(u, batch)), carried) == (True, {})

    quiet, rate = Quadratic(CURVATURE), 0.1 / s**2
    runs, _ = engine(ReparametrisedTask(quiet, scale), SGDRule(rate, momentum=0.0).double(), 9)
    torch.testing.assert_close(runs.params["x"][0] * s, quiet.descend(0.1, 9))


@pytest.mark.parametrize("scale", [1e-3, 1e3, {"layers.0.weight": 3.0, "layers.0.bias": 1e-3}], ids=str)
def test_reparametrised_losses_agree(mlp, scale):
    if isinstance(scale, dict):
        scale = dict.fromkeys(mlp.roles, 1.0) | scale
    task = ReparametrisedTask(mlp, scale)
    u, params, full = task.init(generator(3)), mlp.init(generator(3)), mlp.full_batch("valid")
    torch.testing.assert_close(task.loss(u, full), mlp.loss(params, full))
    torch.testing.assert_close(task.metrics(u, full), mlp.metrics(params, full))
    for name in mlp.roles:
        torch.testing.assert_close(u[name] * (scale[name] if isinstance(scale, dict) else scale), params[name])


def test_gradient_noise_has_its_mean_and_variance(mlp):
    task, level, draws = NoisyGradientTask(mlp, 0.7), 0.7, 4000
    params, batch = mlp.init(generator(0)), mlp.batch(generator(1))
    exact = grad(mlp.loss)(params, batch)
    noise = {name: value for name, value in task.batch(generator(2), draws).items() if name not in batch}
    noisy = vmap(lambda z: task.gradient(params, batch | z)[0])(noise)
    for name, value in exact.items():
        error = noisy[name] - value
        power = error.square().flatten(1).mean(1)
        assert abs(power.mean() - level**2 * value.square().mean()) < 4 * power.std() / draws**0.5
        assert (error.mean(0).abs() <= 5 * error.std(0) / draws**0.5).all()
    grads, loss, _ = task.gradient(params, task.full_batch("train"))
    torch.testing.assert_close(grads, grad(mlp.loss)(params, mlp.full_batch("train")))
    assert torch.equal(loss, mlp.loss(params, mlp.full_batch("train")))


@pytest.mark.parametrize("transform", ["noise", "smaller", "stack"])
def test_the_two_particles_of_a_pair_share_all_randomness(mlp, transform):
    runs, losses = engine(ALL[transform](mlp), AdamRule(0.01), 3, pairs=2, copies=2)
    assert torch.equal(losses[:, :2], losses[:, 2:])
    assert not torch.equal(losses[:, 0], losses[:, 1])
    assert all(torch.equal(value[:2], value[2:]) for value in runs.params.values())


@pytest.mark.parametrize("rule", [SGDRule(0.1), AdamRule(0.01), RESIDUAL], ids=["sgd", "adam", "residual"])
def test_delay_equals_a_plain_loop(mlp, rule):
    delay, steps = 3, 8
    task = DelayedGradientTask(mlp, delay)
    runs, losses = engine(task, rule, steps)
    params, draws = mlp.init(generator(0, "init", 0)), generator(0, "batches")
    history, state = [params], rule.init_state(params, mlp.roles)
    for step in range(steps):
        batch, stale = take(mlp.batch(draws, 1), 0), history[max(step - delay, 0)]
        loss = mlp.loss(stale, batch)
        torch.testing.assert_close(losses[step, 0], loss, rtol=1e-5, atol=1e-5)
        context = StepContext(torch.tensor(float(step)), torch.tensor(float(steps)), loss, mlp.roles)
        with torch.no_grad():
            updates, state = functional_call(rule, {}, (history[-1], grad(mlp.loss)(stale, batch), state, context))
        history.append({name: (value + updates[name]).detach() for name, value in history[-1].items()})
    torch.testing.assert_close(take(task.inner(runs.params), 0), history[-1], rtol=1e-5, atol=1e-5)
    batch = mlp.full_batch("valid")
    torch.testing.assert_close(task.loss(take(runs.params, 0), batch), mlp.loss(history[-1], batch))


def test_delays_add_up(mlp):
    once, losses = engine(DelayedGradientTask(mlp, 3), AdamRule(0.01), 8)
    for first, second in ((1, 2), (2, 1)):
        twice, same = engine(DelayedGradientTask(DelayedGradientTask(mlp, first), second), AdamRule(0.01), 8)
        assert torch.equal(losses, same)
        assert all(torch.equal(once.params[name], twice.params[name]) for name in mlp.roles)


def test_rounding():
    x = torch.randn(1000, generator=generator(0)) * torch.logspace(-12, 8, 1000)
    assert torch.equal(rounded_to(x, "bfloat16"), x.to(torch.bfloat16).float())
    small = x.clamp(-60000, 60000)
    assert torch.equal(rounded_to(small, "float16"), small.half().float())
    assert rounded_to(torch.tensor([1e9, -1e9]), "float16").tolist() == [65504.0, -65504.0]
    steps = rounded_to(x, "int8") / (x.abs().max() / 127)
    assert (steps - steps.round()).abs().max() < 1e-4
    assert (rounded_to(x, "int8") - x).abs().max() <= x.abs().max() / 254 * 1.001
    assert not rounded_to(torch.zeros(3), "int8").any()
    for precision in ("bfloat16", "float16", "int8"):
        assert rounded_to(x.double(), precision).dtype == torch.float64
        slope = grad(lambda v, p=precision: rounded_to(v, p).sum())(torch.tensor([1.0, 0.3]))
        assert torch.equal(slope, torch.ones(2))


def test_low_precision_rounds_the_gradient_only(mlp):
    params, batch = mlp.init(generator(0)), mlp.batch(generator(1))
    grads, loss, _ = LowPrecisionTask(mlp, "bfloat16").gradient(params, batch)
    assert torch.equal(loss, mlp.loss(params, batch))
    for name, value in grad(mlp.loss)(params, batch).items():
        assert torch.equal(grads[name], value.to(torch.bfloat16).float())


def test_the_first_transform_is_innermost(mlp):
    params, noise, low = mlp.init(generator(0)), GradientNoise(low=0.3, high=0.3), LowPrecision(precisions=["bfloat16"])

    def sampled(*transforms):
        return Augmented(_Only(mlp), transforms).sample(generator(0))

    rounded_last, rounded_first = sampled(noise, low), sampled(low, noise)
    assert (rounded_last.name, rounded_first.name) == (
        f"{mlp.name}+noise(0.3)+bfloat16",
        f"{mlp.name}+bfloat16+noise(0.3)",
    )
    assert [entry["name"] for entry in rounded_last.config["transforms"]] == ["gradient_noise", "low_precision"]
    assert rounded_last.config["batch_size"] == 16
    for task, representable in ((rounded_last, True), (rounded_first, False)):
        grads, _, _ = task.gradient(params, task.batch(generator(1)))
        same = torch.equal(grads["layers.0.weight"], grads["layers.0.weight"].to(torch.bfloat16).float())
        assert same == representable


class _Only(QuadraticFamily):
    """The family of one task."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def sample(self, generator):
        return self.task


def test_two_noises_are_two_draws(mlp):
    task = NoisyGradientTask(NoisyGradientTask(mlp, 0.5), 0.5)
    batch = task.batch(generator(0))
    assert not torch.equal(batch["~1/layers.0.bias"], batch["~2/layers.0.bias"])


class _Numbered(Quadratic):
    """Mini-batches of 16 examples, each of which is its own number."""

    batch_size = 16

    def draw(self, generator, *lead, split="train"):
        numbers = torch.arange(16 * math.prod(lead)).reshape(*lead, 16)
        return {"number": numbers, "square": torch.stack([numbers, numbers**2], -1)}


def test_smaller_batch_is_a_random_part():
    plain = NoisyGradientTask(_Numbered(CURVATURE), 0.1)
    task = SmallerBatchTask(plain, 5)
    small, whole = task.batch(generator(1), 40, 50), plain.batch(generator(1), 40, 50)
    assert (task.batch_size, small["number"].shape, small["square"].shape) == (5, (40, 50, 5), (40, 50, 5, 2))
    assert torch.equal(small["~1/x"], whole["~1/x"])
    assert torch.equal(small["square"][..., 1], small["number"] ** 2)
    assert (small["number"].sort(-1).values.diff() > 0).all()  # without replacement
    assert torch.equal(small["number"] // 16, torch.arange(2000).reshape(40, 50, 1).expand(-1, -1, 5))
    counts = (small["number"] % 16).flatten().bincount(minlength=16)
    assert (counts - 625).abs().max() < 5 * (2000 * 5 / 16 * 11 / 16) ** 0.5  # each example equally often
    assert task.full_batch("valid").keys() == plain.full_batch("valid").keys()


def test_frozen_tensors_stay_and_the_others_train_as_alone(mlp):
    names = ["layers.0.weight", "layers.1.bias"]
    task = FrozenTask(mlp, names)
    assert set(task.roles) == {"layers.0.bias", "layers.1.weight"}
    runs, _ = engine(task, SGDRule(0.1, momentum=0.0), 5)
    params, draws = mlp.init(generator(0, "init", 0)), generator(0, "batches")
    assert set(start_runs(RESIDUAL, task, pairs=1, horizon=1, seed=0).state.tensors) == set(task.roles)
    for name in names:
        assert torch.equal(runs.params[name][0], params[name])
    for _ in range(5):
        grads = grad(mlp.loss)(params, take(mlp.batch(draws, 1), 0))
        params = {n: value - 0.1 * grads[n] if n in task.roles else value for n, value in params.items()}
    torch.testing.assert_close(take(runs.params, 0), params, rtol=1e-5, atol=1e-5)


def test_changing_data_are_one_task_after_the_other(mlp):
    """Plain gradient descent on the batches of the one, then on those of the other; measured on the last."""
    before, change, steps = TurnedLabels(mlp), 3, 5
    task = ChangingDataTask(mlp, before, change)
    runs, losses = engine(task, SGDRule(0.1, momentum=0.0), steps)
    draws, params = generator(0, "batches"), mlp.init(generator(0, "init", 0))
    for step in range(steps):
        early, late = before.batch(draws, 1), mlp.batch(draws, 1)
        grads, loss, _ = mlp.gradient(params, take(early if step < change else late, 0))
        torch.testing.assert_close(losses[step, 0], loss)
        params = {name: value - 0.1 * grads[name] for name, value in params.items()}
    ended = take(runs.params, 0)
    torch.testing.assert_close(task.inner(ended), params)
    full = mlp.full_batch("valid")
    assert task.loss(ended, task.full_batch("valid")) == mlp.loss(task.inner(ended), full)
    assert task.metrics(task.init(generator(0)), task.full_batch("valid")) == mlp.metrics(mlp.init(generator(0)), full)


def test_heavy_tails_fall_off_as_a_power():
    r"""P(\|z u^{-1/α}\| > x) falls by 2^{-α} where x doubles, far out; a normal tail would be gone."""
    wide = Quadratic(torch.ones(400_000))
    for tail in (1.0, 1.5):
        task = HeavyTailedGradientTask(wide, 1.0, tail)
        noise = task.batch(generator(0))[task.entry_name("x")].abs()
        shares = [float((noise > bound).float().mean()) for bound in (10.0, 20.0)]
        assert shares[1] / shares[0] == pytest.approx(2**-tail, rel=0.1)
    assert task.config["transforms"][-1] == {"name": "gradient_noise", "level": 1.0, "tail": 1.5}


def test_a_given_start_is_the_same_in_every_run(mlp):
    start = {"layers.0.weight": torch.full((8, mlp.splits["train"]["inputs"][0].numel()), 0.5)}
    task = GivenStartTask(mlp, start)
    start["layers.0.weight"].zero_()
    for seed in range(2):
        params, plain = task.init(generator(seed)), mlp.init(generator(seed))
        assert (params.pop("layers.0.weight") == 0.5).all()
        assert all(torch.equal(value, plain[name]) for name, value in params.items())


def test_vmap_equals_loop(transformed):
    inits = [transformed.init(generator(seed)) for seed in range(3)]
    params = {name: torch.stack([one[name] for one in inits]) for name in inits[0]}
    batch = transformed.batch(generator(9), 3)
    stacked = vmap(transformed.gradient)(params, batch)
    for index in range(3):
        one = transformed.gradient(inits[index], take(batch, index))
        assert set(one[0]) == set(transformed.roles)
        assert set(one[2]) <= set(inits[0])
        for part, whole in zip(one, stacked, strict=True):
            if isinstance(whole, dict):
                torch.testing.assert_close(take(whole, index), part, rtol=1e-2, atol=1e-3)  # rounding may go either way
            else:
                torch.testing.assert_close(whole[index], part, rtol=1e-5, atol=1e-5)


def test_contract(transformed, mlp):
    again = transformed.batch(generator(5), 2)
    assert all(torch.equal(value, again[name]) for name, value in transformed.batch(generator(5), 2).items())
    assert (transformed.loss_scale, transformed.name.startswith(f"{mlp.name}+")) == (mlp.loss_scale, True)
    assert json.loads(json.dumps(transformed.config)) == transformed.config
    params = [transformed.init(generator(seed)) for seed in range(2)]
    stacked = {name: torch.stack([one[name] for one in params]) for name in params[0]}
    for split in ("train", "valid"):
        assert vmap(transformed.loss, (0, None))(stacked, transformed.full_batch(split)).isfinite().all()
    assert 0 <= transformed.metrics(params[0], transformed.full_batch("valid"))["accuracy"] <= 1


@pytest.mark.parametrize("rule", [AdamRule(), RESIDUAL], ids=["adam", "residual"])
def test_one_outer_step(transformed, rule):
    estimator = PES(3, pairs=2)
    runs = estimator.start(rule, transformed, horizon=6, seed=0)
    first = estimator.estimate(rule, [runs])
    estimate = estimator.estimate(rule, first.groups)  # the first losses that feel θ under a delay of 2
    assert (first.failures, estimate.failures, estimate.groups[0].finished) == (0, 0, True)
    assert estimate.groups[0].params.keys() == runs.params.keys()
    assert estimate.gradient.isfinite().all()
    assert estimate.gradient.any()


def test_augmented_families_draw_the_same_tasks_within(blobs):
    plain = ImageMLP(blobs, widths=(8,))
    (family,) = augment([plain], "broad")
    assert (family.name, [entry["name"] for entry in family.config["transforms"]][:2]) == (
        "image_mlp",
        ["smaller_batch", "frozen_tensors"],
    )
    assert json.loads(json.dumps(family.config)) == family.config
    tasks = [family.sample(generator(seed)) for seed in range(200)]
    for seed, task in enumerate(tasks[:20]):
        assert task.name.split("+")[0] == plain.sample(generator(seed)).name
        assert task.name == family.sample(generator(seed)).name
    seen = Counter(entry["name"] for task in tasks for entry in task.config.get("transforms", []))
    shares = {"smaller_batch": 0.2, "frozen_tensors": 0.1, "delayed_gradients": 0.1, "gradient_noise": 0.2}
    for name, share in (shares | {"low_precision": 0.2, "reparametrise": 0.6}).items():
        assert abs(seen[name] / 200 - share) < 0.13, name
    settings = {task.name: json.dumps(task.config) for task in tasks}
    assert len(settings) == len({(task.name, json.dumps(task.config)) for task in tasks}) > 190


def test_celo_scales_are_log_uniform():
    (family,) = augment([QuadraticFamily()], "celo")
    scales = [family.sample(generator(seed)).config["transforms"][0]["scale"] for seed in range(400)]
    logs = torch.tensor(scales).log10()
    assert (min(scales) >= 1e-3, max(scales) <= 1e3) == (True, True)
    assert abs(logs.mean()) < 4 * logs.std() / 20
    assert logs.std() == pytest.approx(6 / 12**0.5, rel=0.1)


def test_what_cannot_change_stays():
    bowl = Quadratic(torch.ones(3))
    assert SmallerBatch().apply(bowl, generator(0)) is bowl
    assert FrozenTensors().apply(bowl, generator(0)) is bowl
    assert Reparametrise(probability=0.0)(bowl, generator(0)) is bowl
    assert augment([QuadraticFamily()], None)[0].sample(generator(0)).name.count("+") == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda task: Reparametrise(low=2.0, high=1.0), "reparametrise: low and high must be positive numbers"),
        (lambda task: GradientNoise(low=0.0), "gradient_noise: low and high"),
        (lambda task: GradientNoise(probability=1.5), r"probability must lie in \[0, 1\], got 1.5"),
        (lambda task: DelayedGradients(delays=(0,)), "delays must be a sequence of positive integers"),
        (lambda task: LowPrecision(precisions=("fp4",)), "precisions must be a sequence of some of 'bfloat16'"),
        (lambda task: SmallerBatch(smallest=0.0), "smallest must lie in"),
        (lambda task: FrozenTensors(largest=2.0), "largest must lie in"),
        (lambda task: ReparametrisedTask(task, 0.0), "scale must be positive numbers, got 0.0"),
        (
            lambda task: ReparametrisedTask(task, {"x": 1.0}),
            r"scale names the tensors \['x'\], but image_mlp/.* trains",
        ),
        (lambda task: NoisyGradientTask(task, -1.0), "level must be a number >= 0, got -1.0"),
        (lambda task: LowPrecisionTask(task, "fp4"), "precision must be"),
        (lambda task: DelayedGradientTask(task, 0), "delay must be"),
        (lambda task: SmallerBatchTask(task, 17), "has mini-batches of 16 examples .* at most that many"),
        (lambda task: SmallerBatchTask(Quadratic(torch.ones(2)), 1), "quadratic/d2 has no batch_size"),
        (lambda task: FrozenTask(task, list(task.roles)), "frozen must be some but not all of"),
        (lambda task: HeavyTailedGradientTask(task, 1.0, 0.0), "tail must be a positive number, got 0.0"),
        (lambda task: GivenStartTask(task, {"x": torch.ones(2)}), r"start has 'x' of shape \(2,\); .* needs one of"),
        (lambda task: GivenStartTask(task, {"layers.0.bias": torch.ones(2)}), r"needs \(8,\)"),
        (lambda task: ChangingDataTask(task, task, 0), "change must be"),
        (lambda task: ChangingDataTask(task, Quadratic(torch.ones(2)), 1), "quadratic/d2 has other parameters"),
        (lambda task: augment([], "narrow"), "there is no augmentation 'narrow'; use one of 'celo', 'broad'"),
    ],
)
def test_wrong_settings(mlp, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(mlp)


def test_meta_training_resumes_with_what_tasks_carry(tmp_path, blobs):
    transforms = [FrozenTensors(), DelayedGradients(delays=(3,)), GradientNoise()]

    def fit(steps, folder, ckpt=None):
        family = Augmented(ImageMLP(blobs, widths=(8,), batch_sizes=(8,)), transforms)
        module = MetaTrainer(AdamRule(0.01), PES(2, pairs=2), groups=1, horizons=(30, 30), lr=0.01)
        trainer = L.Trainer(
            max_steps=steps,
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")],
        )
        with torch.random.fork_rng():  # the Trainer draws seeds of its own
            trainer.fit(module, TaskDataModule(family), ckpt_path=ckpt)
        return module.rank_groups[0].runs

    straight = fit(4, tmp_path)
    resumed = fit(4, tmp_path, tmp_path / "step=2.ckpt")
    assert any(name.startswith("~") for name in straight.params)
    assert all(torch.equal(value, resumed.params[name]) for name, value in straight.params.items())
