"""Recorded inner steps give the numbers of those that are not; what they overwrite is never seen."""

import gc
import warnings

import pytest
import torch

from lightning_lopt import (
    PES,
    AdamRule,
    Celo2BaseRule,
    FullES,
    MetaLoss,
    ResidualRule,
    TruncatedBackprop,
    TruncatedES,
    load_rule,
)
from lightning_lopt.meta import Compiled, Eager, Recorded
from lightning_lopt.meta.engine import recording
from lightning_lopt.meta.engine.recording import SMALL, small_on_cuda
from lightning_lopt.meta.runs import can_batch
from lightning_lopt.meta.unroll import EAGER
from lightning_lopt.recording import WARM_UP, overwrite
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic
from lightning_lopt.tasks.mixtures import make_families
from lightning_lopt.tasks.transforms import ReparametrisedTask

LOSS = MetaLoss("log", "both")


def small_mlp(seed=3, activation="relu", width=8):
    family = ImageMLP(depths=(1,), widths=(width,), batch_sizes=(8,), variety=False, activations=(activation,))
    return family.sample(generator(seed))


@pytest.fixture
def replayed(monkeypatch):
    """On the CPU a recording calls the function again, in the memory that it has; how many there are."""
    recorded = []

    def record(function):
        recorded.append(function)
        for _ in range(WARM_UP):
            function()
        return function

    monkeypatch.setattr(recording, "record", record)
    monkeypatch.setattr(recording, "small_on_cuda", lambda _: True)
    return recorded


def estimates(estimator, rule, tasks, execution=EAGER):
    """Three truncations of each task in turn, and the first one once more."""
    with torch.no_grad():
        first = [estimator.start(rule, task, horizon=100, seed=seed) for seed, task in enumerate(tasks)]
        runs, found = list(first), []
        for _ in range(3):
            for index in range(len(tasks)):
                estimate = estimator.estimate(rule, [runs[index]], execution)
                (runs[index],) = estimate.groups
                found += [estimate.gradient, estimate.meta_losses]
        found += [estimator.estimate(rule, [first[0]], execution).gradient]
    return torch.cat([value.flatten().cpu() for value in found])


@pytest.mark.parametrize("rule", [AdamRule, ResidualRule, Celo2BaseRule, lambda: load_rule("base")])
def test_a_recording_has_the_numbers_of_the_step_itself(rule, replayed):
    rule, task = rule(), small_mlp()
    expected = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task])
    assert torch.equal(estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task], Recorded()), expected)
    assert len(replayed) == 1  # in their first steps, rules with several phases do all at each


@pytest.mark.slow
def test_steps_that_are_full_and_steps_that_are_not_take_turns(replayed):
    rule, task = ResidualRule(direction=False, orthogonalised=[], rotated=["matrix", "head"], turn_every=3), small_mlp()
    expected = estimates(PES(30, pairs=2), rule, [task])  # the first 20 steps are all full
    assert torch.equal(estimates(PES(30, pairs=2), rule, [task], Recorded()), expected)
    assert not torch.equal(expected, estimates(PES(30, pairs=2), type(rule)(**rule.config | {"turn_every": 1}), [task]))


def test_large_batches_are_made_for_a_few_steps_at_once(replayed, monkeypatch, recwarn):
    """As few as one recording needs to warm up, and there are two of them."""
    monkeypatch.setattr(recording, "CHUNK", 1)
    rule, task = load_rule("base"), small_mlp()
    expected = estimates(PES(25, pairs=2, meta_loss=LOSS), rule, [task])
    assert torch.equal(estimates(PES(25, pairs=2, meta_loss=LOSS), rule, [task], Recorded()), expected)
    assert not [warning for warning in recwarn if "not recorded" in str(warning.message)]


def test_runs_of_one_task_that_alternate_do_not_mix(replayed):
    task, other, rule = Quadratic(torch.tensor([1.0, 4.0])), Quadratic(torch.tensor([2.0, 3.0])), AdamRule(0.01)
    tasks = [task, other, task]
    assert torch.equal(estimates(PES(3, pairs=2), rule, tasks, Recorded()), estimates(PES(3, pairs=2), rule, tasks))
    assert len(replayed) == 2


def test_tasks_that_compute_the_same_share_a_recording(replayed):
    """Other data, other scales: batches are looked up outside, scales are carried. Another activation is another."""
    rule, execution = AdamRule(0.01), Recorded()
    tasks = [ReparametrisedTask(small_mlp(seed), scale) for seed, scale in ((3, 0.1), (5, 10.0))]
    tasks[1].task.splits = {
        split: {**batch, "inputs": -batch["inputs"]} for split, batch in tasks[1].task.splits.items()
    }
    for given, recordings in ((tasks, 1), ([small_mlp(activation="tanh")], 2)):
        expected = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, given)
        assert torch.equal(estimates(PES(3, pairs=2, meta_loss=LOSS), rule, given, execution), expected)
        assert len(replayed) == recordings


@pytest.mark.parametrize("rule", [AdamRule, Celo2BaseRule])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", [PES, FullES, TruncatedES], ids=lambda kind: kind.name)
def test_groups_that_compute_the_same_advance_as_one(replayed, rule, recorded, kind):
    """The numbers of each alone, up to rounding, also where one is at its horizon before the other."""
    rule, advances = rule(), []
    options = {} if kind is FullES else {"truncation": 4}
    estimator = kind(pairs=2, meta_loss=LOSS, **options)
    tasks = [ReparametrisedTask(small_mlp(seed), scale) for seed, scale in ((3, 0.1), (5, 10.0), (7, 1.0))]

    class Counted(Eager):
        def step(self, *arguments):
            advances.append(arguments[6].step.shape)
            return super().step(*arguments)

    execution = Recorded(Counted()) if recorded else Counted()
    with torch.no_grad():
        starts = [estimator.start(rule, task, horizon=5 + at, seed=at) for at, task in enumerate(tasks)]
        assert can_batch(rule, starts)
        alone, joint, steps = list(starts), list(starts), 0
        while not all(runs.finished for runs in alone):
            one_by_one = [estimator.estimate(rule, [runs]) for runs in alone]
            advances.clear()
            at_once = estimator.estimate(rule, joint, execution)
            assert set(advances) == {(4 * len(tasks),)}
            gradient = torch.stack([estimate.gradient for estimate in one_by_one]).mean(0)
            torch.testing.assert_close(at_once.gradient, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
            for name in ("meta_losses", "failures", "powers"):
                expected = torch.cat([getattr(estimate, name) for estimate in one_by_one])
                torch.testing.assert_close(getattr(at_once, name), expected, rtol=1e-3, atol=0)
            alone, joint = [estimate.groups[0] for estimate in one_by_one], at_once.groups
            assert [runs.step for runs in joint] == [runs.step for runs in alone]
            for found, expected in zip(joint, alone, strict=True):
                for name, value in expected.params.items():
                    torch.testing.assert_close(found.params[name], value, rtol=1e-4, atol=1e-6)
            steps += 1
    assert steps == (1 if kind is FullES else 2)


@pytest.mark.parametrize("kind", [PES, FullES, TruncatedBackprop], ids=lambda kind: kind.name)
def test_groups_that_do_not_compute_the_same_advance_one_after_the_other(kind):
    """Bit for bit as each alone, though horizons end at different steps; the gradient is the mean of theirs."""
    rule, estimator = AdamRule(0.01), FullES(pairs=2) if kind is FullES else kind(4, 2)
    tasks = [small_mlp(), small_mlp(activation="tanh"), Quadratic(torch.ones(2))]
    with torch.no_grad():
        groups = [estimator.start(rule, task, horizon=3 + at, seed=at) for at, task in enumerate(tasks)]
        assert not can_batch(rule, groups)
        one_by_one = [estimator.estimate(rule, [runs]) for runs in groups]
        at_once = estimator.estimate(rule, groups)
    torch.testing.assert_close(at_once.gradient, torch.stack([estimate.gradient for estimate in one_by_one]).mean(0))
    for found, estimate in zip(at_once.groups, one_by_one, strict=True):
        assert found.step == estimate.groups[0].step
        assert all(torch.equal(value, found.params[name]) for name, value in estimate.groups[0].params.items())


def test_what_does_not_advance_as_one():
    rule, estimator = AdamRule(), PES(3, pairs=2)
    task, other, wider = small_mlp(), small_mlp(activation="tanh"), small_mlp(width=4)

    def start(task):
        return estimator.start(rule, task, horizon=9, seed=0)

    bowl = Quadratic(torch.ones(2))
    assert can_batch(rule, [start(bowl)])
    for tasks in ([task, other], [task, wider], [bowl, bowl], [task, bowl]):
        assert not can_batch(rule, [start(one) for one in tasks])
    turning = ResidualRule(direction=False, orthogonalised=[], rotated=["matrix"], turn_every=3)
    assert not can_batch(turning, [start(task), start(task)])  # full steps of one are not those of the other


def test_a_recording_is_forgotten_with_the_last_of_its_tasks(replayed, monkeypatch):
    monkeypatch.setattr(recording, "record", lambda function: function() or int)  # a graph keeps no task
    rule, execution = AdamRule(0.01), Recorded()
    tasks = [small_mlp(), small_mlp(5)]
    estimates(PES(3, pairs=2), rule, tasks, execution)
    for alive in (1, 0):
        del tasks[-1]
        gc.collect()
        assert len(execution.shared) == alive


def test_values_that_change_places_are_read_before_they_are_overwritten():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    overwrite([(first, second), (second, first[:]), (torch.empty(1), torch.ones(1))])
    assert first.tolist() == [3, 4]
    assert second.tolist() == [1, 2]


def test_it_records_anew_for_another_rule_or_number_of_runs(replayed):
    task, execution = small_mlp(), Recorded()
    for rule, pairs in ((AdamRule(0.01), 2), (AdamRule(0.03), 2), (ResidualRule(), 3)):
        expected = estimates(PES(3, pairs=pairs), rule, [task])
        assert torch.equal(estimates(PES(3, pairs=pairs), rule, [task], execution), expected)
    assert len(replayed) == 3


def test_a_rule_whose_parameters_moved_is_recorded_anew(replayed):
    rule, task, execution = AdamRule(0.01), small_mlp(), Recorded()
    estimates(PES(3, pairs=2), rule, [task], execution)
    rule.double().float()
    estimates(PES(3, pairs=2), rule, [task], execution)
    assert len(replayed) == 2


def test_where_recording_fails_steps_are_made_one_by_one_and_the_reason_is_given_once(replayed, monkeypatch):
    def refused(_):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(recording, "record", refused)
    rule, task = AdamRule(0.01), small_mlp()
    with pytest.warns(UserWarning, match="not recorded: RuntimeError: operation not permitted") as warned:
        found = estimates(PES(3, pairs=2), rule, [task], Recorded())
    assert len([one for one in warned if "not recorded" in str(one.message)]) == 1
    assert torch.equal(found, estimates(PES(3, pairs=2), rule, [task]))


def test_gradients_are_never_recorded(replayed):
    estimates(TruncatedBackprop(3, 2), AdamRule(0.01), [small_mlp()], Recorded())
    assert not replayed


def test_only_small_runs_on_cuda_are_recorded():
    class OnCuda:
        """What is asked of a tensor; there may be no CUDA device."""

        is_cuda = True

        def __init__(self, size):
            self.size = size

        def numel(self):
            return self.size

    assert small_on_cuda([OnCuda(SMALL // 2), OnCuda(SMALL // 2)])
    assert not small_on_cuda([OnCuda(SMALL // 2), OnCuda(SMALL // 2 + 1)])
    assert not small_on_cuda([torch.ones(2)])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rule", "compiled"),
    [
        *[(rule, compiled) for rule in (AdamRule, ResidualRule, Celo2BaseRule) for compiled in (False, True)],
        (lambda: load_rule("base"), False),  # compiled, its bases drift apart from those that are not
    ],
)
def test_recorded_on_a_gpu(rule, compiled):
    rule, task = rule().to("cuda"), small_mlp()
    execution = Recorded(Compiled()) if compiled else Recorded()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not (compiled|recorded).*")
        expected = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task])
        found = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task], execution)
    tolerance = 1e-2 * float(expected.abs().max()) if compiled else 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=tolerance)


@pytest.mark.gpu
def test_every_family_of_broad_is_recorded():
    """Nothing in a task may copy from the CPU or wait for the device."""
    rule = AdamRule(0.01).to("cuda")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not recorded.*")
        for family in make_families("broad"):
            found = estimates(PES(2, pairs=2), rule, [family.sample(generator(1))], Recorded())
            assert found.isfinite().any(), family.name
