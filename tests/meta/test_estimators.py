"""Estimators and the unroll engine against plain loops; noise, failures and shaping."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from lightning_lopt import PES, AdamRule, FullES, MetaLoss, ResidualRule, SGDRule
from lightning_lopt.meta import NRES, ESSingle, TruncatedBackprop, TruncatedES, start_runs, unroll
from lightning_lopt.meta.theta import named_theta
from lightning_lopt.rules import StepContext
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic

ESTIMATORS = (FullES, PES, NRES, ESSingle, TruncatedES, TruncatedBackprop)


def build(cls, count, **settings):
    """An estimator with ``count`` independent terms."""
    arguments = inspect.signature(cls).parameters
    amount = {"runs": count} if "runs" in arguments else {"pairs": count, "sigma": 0.1}
    length = {"truncation": 5} if "truncation" in arguments else {}  # an estimator of whole runs has none
    return cls(**length, **amount, **settings)


@pytest.mark.parametrize(
    "rule",
    [AdamRule(0.01), ResidualRule(), ResidualRule(orthogonalised=["matrix", "head"])],
    ids=["adam", "residual", "orthogonalised-head"],
)
def test_vmapped_unroll_equals_a_plain_loop(rule):
    torch.manual_seed(0)
    task = ImageMLP(depths=(2,), widths=(16,), batch_sizes=(16,), variety=False).sample(generator(3))
    theta = {name: value.detach() for name, value in rule.named_parameters()}
    noise = {name: 0.1 * torch.randn(4, *value.shape) for name, value in theta.items()}
    particles = {name: value + noise[name] for name, value in theta.items()}
    runs = start_runs(rule, task, pairs=2, horizon=12, seed=5)
    after, losses = unroll(rule, particles, runs, 6, generator(9))

    draws = generator(9)
    batches = [task.batch(draws, 2) for _ in range(6)]
    for particle in range(4):
        params = {name: value[particle] for name, value in runs.params.items()}
        state = rule.init_state(params, task.roles)
        own = {name: value[particle] for name, value in particles.items()}
        for step, batch in enumerate(batches):
            params = {name: value.detach().requires_grad_() for name, value in params.items()}
            loss = task.loss(params, {name: value[particle % 2] for name, value in batch.items()})
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
            context = StepContext(torch.tensor(float(step)), torch.tensor(12.0), loss.detach(), task.roles)
            with torch.no_grad():
                updates, state = functional_call(rule, own, (params, grads, state, context))
                params = {name: value + updates[name] for name, value in params.items()}
            torch.testing.assert_close(losses[0, step, particle], loss.detach(), rtol=1e-5, atol=1e-5)
        for name, value in params.items():
            torch.testing.assert_close(after.params[name][particle], value, rtol=1e-5, atol=1e-5)


def small_mlp():
    return ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,), variety=False, activations=("tanh",)).sample(
        generator(3)
    )


@pytest.mark.parametrize("split", ["train", "both"])
@pytest.mark.parametrize("rule", [AdamRule(0.05), ResidualRule()], ids=["adam", "residual"])
def test_truncated_backprop_equals_autograd_through_a_plain_loop(rule, split):
    torch.manual_seed(0)
    for value in rule.parameters():
        torch.nn.init.normal_(value, std=0.1) if value.ndim == 2 else None  # so that all of θ matters
    task, steps = small_mlp(), 5
    estimator = TruncatedBackprop(steps, runs=2, meta_loss=MetaLoss("log", split))
    runs = estimator.start(rule, task, horizon=20, seed=5)
    estimate = estimator.estimate(rule, [runs])

    draws = generator(5, "batches", 0)
    batches = []
    for _ in range(steps):
        train = task.batch(draws, 2)
        batches.append((train, task.batch(draws, 2, split="valid") if split == "both" else train))
    total = 0.0
    for run in range(2):
        params = {name: value[run].requires_grad_() for name, value in runs.params.items()}
        state = rule.init_state(params, task.roles)
        for step, (train, valid) in enumerate(batches):
            train, valid = ({name: value[run] for name, value in batch.items()} for batch in (train, valid))
            loss = task.loss(params, train)
            measured = [loss] if split == "train" else [loss, task.loss(params, valid)]
            total = total + sum(torch.log(x / task.loss_scale + 0.01) for x in measured) / len(measured) / steps / 2
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()), create_graph=True), strict=True))
            context = StepContext(torch.tensor(float(step)), torch.tensor(20.0), loss, task.roles)
            updates, state = rule(params, grads, state, context)
            params = {name: value + updates[name] for name, value in params.items()}
    theta = dict(rule.named_parameters())
    exact = dict(zip(theta, torch.autograd.grad(total, list(theta.values()), materialize_grads=True), strict=True))
    assert any(value.abs().max() > 0 for value in exact.values())
    for name, value in named_theta(estimate.gradient, rule).items():
        torch.testing.assert_close(value, exact[name], rtol=2e-3, atol=1e-6, msg=name)
    assert not any(
        value.requires_grad for value in estimate.groups[0].params.values()
    )  # memory ends with the truncation


class SomeExplode(Quadratic):
    """A bowl whose second, fourth, ... inner run begins so far out that its loss is infinite."""

    def __init__(self, explode):
        super().__init__(torch.tensor([1.0, 4.0], dtype=torch.float64))
        self.loss_scale = 1.0
        self.explode, self.made = explode, 0

    def init(self, generator):
        self.made += 1
        return {"x": self.start * (1e300 if self.explode and self.made % 2 == 0 else 1.0)}


@pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.name)
def test_a_diverging_run_takes_no_part_and_is_counted(cls):
    """Without a cap the estimate is that of the healthy runs over the number of all; pairs have noise of their own."""
    rule, uncapped = SGDRule(0.1).double(), MetaLoss(cap=None)
    estimates = []
    for explode, count in ((True, 2), (False, 1)):
        estimator = build(cls, count, meta_loss=uncapped)
        runs = estimator.start(rule, SomeExplode(explode), horizon=20, seed=0)
        estimates.append(estimator.estimate(rule, [runs]))
    broken, healthy = estimates
    assert broken.failures == (1 if cls is TruncatedBackprop else 2)
    assert healthy.failures == 0
    assert float(broken.gradient) == pytest.approx(float(healthy.gradient) / 2, rel=1e-12)
    assert float(broken.powers) == pytest.approx(float(healthy.powers) / 2, rel=1e-12)
    assert float(broken.meta_losses) == pytest.approx(float(healthy.meta_losses), rel=1e-12)


@pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.name)
def test_a_diverging_run_counts_as_the_cap(cls):
    rule, task = SGDRule(10.0), Quadratic(torch.tensor([1.0, 1000.0]), start=1e20)
    estimator = build(cls, 2)
    estimate = estimator.estimate(rule, [estimator.start(rule, task, horizon=20, seed=0)])
    assert estimate.failures == estimator.particles
    assert estimate.gradient.isfinite().all()
    assert float(estimate.meta_losses) == pytest.approx(1.5)


def test_truncated_es_goes_on_with_the_particle_that_lives():
    """At learning rates beyond 2 / h a bowl explodes: with σ = 3 about half of the particles do."""
    rule, task = SGDRule(0.1), Quadratic(torch.tensor([1.0, 4.0]))
    estimator = TruncatedES(400, pairs=32, sigma=3.0)
    runs = estimator.start(rule, task, horizon=2000, seed=1)
    after = estimator.estimate(rule, [runs])
    plus, minus = after.groups[0].params["x"].chunk(2)
    assert torch.equal(plus, minus)
    assert after.failures > 4
    assert bool(plus.isfinite().all())  # of a pair of learning rates with product 0.01, one is below 0.1


def test_es_single_is_nres():
    rule, task = ResidualRule(), small_mlp()
    a, b = (
        estimator.estimate(rule, [estimator.start(rule, task, horizon=20, seed=0)]).gradient
        for estimator in (NRES(5, pairs=2), ESSingle(5, pairs=2))
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize("cls", [PES, NRES, TruncatedES], ids=lambda cls: cls.name)
def test_noise_is_derived_again_where_it_is_not_at_hand(cls):
    """What a checkpoint leaves out of the inner runs follows from their seed, bit for bit."""
    rule, task, estimator = ResidualRule(), small_mlp(), cls(3, pairs=2)
    runs = estimator.start(rule, task, horizon=20, seed=0)
    for _ in range(3):
        (runs,) = estimator.estimate(rule, [runs]).groups
    kept, derived = estimator.estimate(rule, [runs]), estimator.estimate(rule, [replace(runs, noise_sum=None)])
    assert torch.equal(kept.gradient, derived.gradient)


def test_shaping_is_that_of_the_differences():
    rule, task, pairs = SGDRule(0.1).double(), Quadratic(torch.tensor([1.0, 4.0], dtype=torch.float64), noise=0.3), 6
    draws = [torch.randn(1, generator=generator(0, "noise", 0, pair), dtype=torch.float64) for pair in range(pairs)]
    noise = 0.1 * torch.cat(draws)
    particles = {"log_lr": torch.cat([rule.log_lr + noise, rule.log_lr - noise]).detach()}
    runs = start_runs(rule, task, pairs=pairs, horizon=10, seed=0)
    losses = unroll(rule, particles, runs, 10, generator(0, "batches", 0))[1][0].mean(0) / task.loss_scale
    delta = losses[:pairs] - losses[pairs:]
    among = torch.cat([delta, -delta]).sort().values
    rank = (2 * torch.searchsorted(among, delta) + 1 - 2 * pairs).double() / (2 * pairs)
    for shaping, shaped in (("none", delta), ("sign", delta.sign()), ("rank", rank)):
        estimator = FullES(pairs=pairs, sigma=0.1, meta_loss=MetaLoss(cap=None), shaping=shaping)
        estimate = estimator.estimate(rule, [estimator.start(rule, task, horizon=10, seed=0)])
        exact = float((shaped * noise).mean()) / (2 * 0.1**2)
        assert float(estimate.gradient) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("cls", "settings", "sentence"),
    [
        (PES, {"pairs": 0}, "pairs"),
        (PES, {"truncation": 0}, "truncation"),
        (FullES, {"sigma": float("nan")}, "sigma"),
        (NRES, {"shaping": "square"}, "shaping"),
        (TruncatedBackprop, {"runs": 0}, "runs"),
        (TruncatedBackprop, {"clip": -1.0}, "clip"),
    ],
)
def test_bad_settings_get_one_sentence(cls, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        cls(**settings)
