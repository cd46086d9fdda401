"""What every rule promises where it is used: behind the optimizer interface, in files, and in the outer loop."""

import copy
import io

import pytest
import torch
from rule_catalogue import cases
from torch.utils._pytree import tree_flatten, tree_leaves

from lightning_lopt import PES, LearnedOptimizer, MetaLoss, StepContext, TruncatedBackprop, load_rule, save_rule
from lightning_lopt.meta.theta import named_theta
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP

SHAPES = {"scalar": (), "vector": (7,), "matrix": (4, 5), "cube": (3, 4, 2), "conv": (5, 3, 2, 2)}

every_rule = pytest.mark.parametrize("entry", cases())


def draw(seed, dtype):
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws).to(dtype) for name, shape in SHAPES.items()}


class Run:
    """Some tensors and the optimizer that trains them, as two groups."""

    def __init__(self, entry, dtype, **second):
        self.params = {name: torch.nn.Parameter(value) for name, value in draw(0, dtype).items()}
        named = list(self.params.items())
        groups = [{"params": named[:3]}, {"params": named[3:], **second}]
        self.optimizer = LearnedOptimizer(groups, entry.rule(torch.float32), total_steps=10)

    def steps(self, first, last, skip=()):
        for step in range(first, last):
            for name, grad in draw(step + 1, next(iter(self.params.values())).dtype).items():
                self.params[name].grad = None if name in skip else grad
            self.optimizer.step(loss=1 / (step + 1))
        return self

    def state(self):
        return copy.deepcopy(self.optimizer.state_dict())


def assert_same(one, other):
    (a, structure), (b, other_structure) = tree_flatten(one), tree_flatten(other)
    assert structure == other_structure
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stop_and_resume_is_no_stop(entry, dtype):
    """Through a file that is read as data."""
    straight = Run(entry, dtype).steps(0, 5)
    stopped = Run(entry, dtype).steps(0, 3)
    file = io.BytesIO()
    torch.save((stopped.optimizer.state_dict(), {name: p.data for name, p in stopped.params.items()}), file)
    file.seek(0)
    state, params = torch.load(file, weights_only=True)
    resumed = Run(entry, dtype)
    for name, value in params.items():
        resumed.params[name].data.copy_(value)
    resumed.optimizer.load_state_dict(state)
    resumed.steps(3, 5)
    assert_same(dict(resumed.params), dict(straight.params))
    assert_same(resumed.state(), straight.state())


@every_rule
def test_bfloat16_parameters_have_float32_state_and_arithmetic(entry):
    run, rule = Run(entry, torch.bfloat16), entry.rule(torch.float32)
    before = {name: value.detach().float() for name, value in run.params.items()}
    run.steps(0, 1)
    assert all(value.dtype == torch.float32 for own in run.optimizer.state.values() for value in own.values())
    at = StepContext(torch.tensor(0.0), torch.tensor(10.0), torch.tensor(1.0))
    grads = {name: value.float() for name, value in draw(1, torch.bfloat16).items()}
    updates, _ = rule(before, grads, rule.init_state(before, {}), at)
    for name, value in run.params.items():
        assert torch.equal(value, (before[name] + updates[name]).bfloat16())


@every_rule
def test_groups_and_missing_gradients(entry):
    """A group's ``lr`` multiplies its steps; a tensor without a gradient keeps value and state, and may join."""
    plain, still = (Run(entry, torch.float32, lr=lr).steps(0, 1) for lr in (1.0, 0.0))
    start = draw(0, torch.float32)
    for name, value in still.params.items():
        assert torch.equal(value, start[name] if name in ("cube", "conv") else plain.params[name])
    run = Run(entry, torch.float32)
    run.steps(0, 2, skip=("vector", "conv"))
    names = list(run.params)
    for name in ("vector", "conv"):
        assert torch.equal(run.params[name], start[name])
        assert names.index(name) not in run.state()["state"]
    run.steps(2, 4)
    before, values = run.state()["state"], {name: run.params[name].detach().clone() for name in ("vector", "conv")}
    run.steps(4, 5, skip=("vector", "conv"))
    for name in ("vector", "conv"):
        assert torch.equal(run.params[name], values[name])
        assert_same(run.state()["state"][names.index(name)], before[names.index(name)])
    assert all(value.isfinite().all() and not torch.equal(value, start[name]) for name, value in run.params.items())


@every_rule
def test_a_step_without_finite_gradients_changes_nothing(entry):
    run = Run(entry, torch.float32).steps(0, 1)
    params, state = copy.deepcopy(run.params), run.state()
    for value in run.params.values():
        value.grad = torch.full_like(value, float("nan") if value.ndim else float("inf"))
    run.optimizer.step(loss=1.0)
    assert run.optimizer.skipped_steps == 1
    for key in ("skipped_steps", "skipped_in_a_row"):
        state["param_groups"][0][key] += 1
    assert_same(dict(run.params), dict(params))
    assert_same(run.state(), state)


@every_rule
def test_large_gradients_stay_finite(entry):
    run = Run(entry, torch.float32)
    for value in run.params.values():
        value.grad = torch.randn_like(value) * 1e18
    run.optimizer.step(loss=1.0)
    assert all(value.isfinite().all() for value in tree_leaves((list(run.params.values()), run.state()["state"])))


@every_rule
def test_files_hold_the_rule(entry, tmp_path):
    rule = entry.rule(torch.float32)
    save_rule(rule, tmp_path / "rule")
    again = load_rule(tmp_path / "rule")
    assert type(again) is type(rule)
    assert again.config == rule.config
    assert_same(dict(again.state_dict()), dict(rule.state_dict()))


LOG_LOSS = MetaLoss("log", cap=None)
ESTIMATORS = [PES(3, pairs=2, sigma=0.01, meta_loss=LOG_LOSS), TruncatedBackprop(3, runs=2, meta_loss=LOG_LOSS)]


@every_rule
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.name)
def test_outer_steps_change_theta(entry, estimator):
    """Two truncations, with units that are dead and so gradients that are exactly 0; each gives a finite gradient."""
    rule = entry.rule(torch.float32)
    task = ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,), variety=False, activations=("relu",)).sample(
        generator(3)
    )
    runs = estimator.start(rule, task, horizon=20, seed=5)
    outer = torch.optim.SGD(rule.parameters(), lr=0.1)
    for _ in range(2):
        before = copy.deepcopy(rule.state_dict())
        estimate = estimator.estimate(rule, [runs])
        assert estimate.failures == 0
        assert estimate.meta_losses.isfinite()
        gradient = named_theta(estimate.gradient, rule)
        for name, value in rule.named_parameters():
            value.grad = gradient[name]
            assert value.grad.isfinite().all(), name
        outer.step()
        assert any(not torch.equal(value, before[name]) for name, value in rule.named_parameters())
        (runs,) = estimate.groups


@pytest.mark.slow
@every_rule
def test_compiled_by_inductor(entry):
    torch._dynamo.reset()  # torch counts the graphs of all rules together
    rule = entry.rule(torch.float32)
    params, grads = draw(0, torch.float32), draw(1, torch.float32)
    state = rule.init_state(params, {})
    at = StepContext(torch.tensor(3.0), torch.tensor(10.0), torch.tensor(1.0))
    with torch.no_grad():
        compiled = torch.compile(rule, fullgraph=True)(params, grads, state, at)
        torch.testing.assert_close(compiled, rule(params, grads, state, at), rtol=1e-4, atol=1e-6)
