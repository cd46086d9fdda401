"""The compiled inner step gives the eager one's numbers, or steps aside."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lopt import PES, AdamRule, Celo2BaseRule, MetaTrainer, ResidualRule, load_rule
from lightning_lopt.meta import Compiled, Eager, TruncatedBackprop
from lightning_lopt.meta.unroll import EAGER
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic
from lightning_lopt.tasks.transforms import ReparametrisedTask


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()


def small_mlp(seed=3):
    family = ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,), variety=False, activations=("relu",))
    return family.sample(generator(seed))


def gradient(estimator, rule, task, execution=EAGER):
    groups = [estimator.start(rule, task, horizon=28, seed=0)]
    for _ in range(2):
        estimate = estimator.estimate(rule, groups, execution)
        groups = estimate.groups
    return estimate.gradient


def test_traced_as_a_whole_and_once_for_an_architecture():
    rule, execution = AdamRule(0.01), Compiled(backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not compiled.*")
        for task in (small_mlp(3), small_mlp(4)):
            eager = gradient(PES(3, pairs=2), rule, task)
            torch.testing.assert_close(gradient(PES(3, pairs=2), rule, task, execution), eager, rtol=1e-4, atol=1e-5)
    assert not execution.uncompiled


def test_tasks_that_differ_in_scale_or_data_share_what_is_compiled():
    counter = CompileCounter()
    rule, execution = AdamRule(0.01), Compiled(backend=counter)
    for seed, scale in ((3, 0.1), (4, 10.0), (5, 1.0)):
        task = ReparametrisedTask(small_mlp(seed), scale)
        expected = gradient(PES(3, pairs=2), rule, task)
        torch.testing.assert_close(gradient(PES(3, pairs=2), rule, task, execution), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_what_cannot_be_traced_runs_eagerly_and_says_so_once():
    class Untraceable(Quadratic):
        def loss(self, params, batch):
            torch._dynamo.graph_break()
            return super().loss(params, batch)

    rule, execution = AdamRule(0.01), Compiled(backend="eager")
    task = Untraceable(torch.tensor([1.0, 4.0]))
    with pytest.warns(UserWarning, match="not compiled") as warned:
        compiled = gradient(PES(3, pairs=2), rule, task, execution)
    assert len([one for one in warned if "not compiled" in str(one.message)]) == 1
    assert torch.equal(compiled, gradient(PES(3, pairs=2), rule, task))
    assert len(execution.uncompiled) == 1


def test_an_error_of_the_task_is_that_of_the_task():
    class Broken(Quadratic):
        def loss(self, params, batch):
            raise KeyError("no such parameter")

    with pytest.raises(KeyError, match="no such parameter"), pytest.warns(UserWarning, match="not compiled"):
        gradient(PES(3, pairs=2), AdamRule(), Broken(torch.tensor([1.0])), Compiled(backend="eager"))


def test_meta_trainer_switches_it_on():
    estimator = PES()
    assert isinstance(MetaTrainer(AdamRule(), estimator, compile=True).execution.execution, Compiled)
    assert isinstance(MetaTrainer(AdamRule(), estimator).execution.execution, Eager)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "rule"),
    [(PES, ResidualRule), (PES, Celo2BaseRule), (PES, lambda: load_rule("base")), (TruncatedBackprop, AdamRule)],
    ids=["pes-residual", "pes-celo2_base", "pes-base", "truncated_backprop-adam"],
)
def test_machine_code_gives_the_same_numbers(estimator, rule):
    """Step by step from the same numbers, in float64: bases of equal variances turn any way and caution asks for signs,
    so that runs drift apart by rounding."""
    rule, execution, steps = rule().double(), Compiled(), []

    def double(value):
        return value.double() if value.is_floating_point() else value

    class Both(Eager):
        def step(self, rule, task, *arguments):
            *tensors, phase = arguments
            arguments = (rule, task, *tree_map(double, tensors), phase)
            results = super().step(*arguments)
            for value, compiled in zip(*map(tree_leaves, (results, execution.step(*arguments))), strict=True):
                tolerance = 1e-6 * float(value.detach().abs().max() + 1e-6)
                torch.testing.assert_close(compiled, value, rtol=1e-6, atol=tolerance)
            steps.append(phase)
            return results

    gradient(estimator(14), rule, small_mlp(), Both())  # 20 full steps, and a step of each of eight phases
    assert not execution.uncompiled
    assert len(steps) == 28
    assert set(steps) == set(rule.phases)
