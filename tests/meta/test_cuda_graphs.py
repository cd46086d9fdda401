"""Recorded inner steps give the numbers of those that are not; what they overwrite is never seen."""

import warnings

import pytest
import torch

from lightning_lopt import PES, AdamRule, Celo2BaseRule, MetaLoss, ResidualRule, TruncatedBackprop, load_rule
from lightning_lopt.meta import cuda_graphs
from lightning_lopt.meta.compiled import CompiledAdvance
from lightning_lopt.meta.cuda_graphs import SMALL, CudaGraphs, overwrite, small_on_cuda
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP
from lightning_lopt.tasks.mixtures import make_families

LOSS = MetaLoss("log", "both")


def small_mlp(seed=3):
    family = ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,), variety=False, activations=("relu",))
    return family.sample(generator(seed))


@pytest.fixture
def replayed(monkeypatch):
    """On the CPU a recording calls the function again, in the memory that it has; how many there are."""
    recorded = []

    def record(function):
        recorded.append(function)
        function()
        return function

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "small_on_cuda", lambda _: True)
    return recorded


def estimates(estimator, rule, tasks, advance=None):
    """Three truncations of each task in turn, and the first one once more."""
    if advance is not None:
        estimator.advance = advance
    with torch.no_grad():
        first = [estimator.start(rule, task, horizon=100, seed=seed) for seed, task in enumerate(tasks)]
        runs, found = list(first), []
        for _ in range(3):
            for index in range(len(tasks)):
                estimate = estimator.estimate(rule, runs[index])
                runs[index] = estimate.runs
                found += [*estimate.gradient.values(), estimate.meta_loss]
        found += estimator.estimate(rule, first[0]).gradient.values()
    return torch.cat([value.flatten().cpu() for value in found])


@pytest.mark.parametrize("rule", [AdamRule, ResidualRule, Celo2BaseRule, lambda: load_rule("base")])
def test_a_recording_has_the_numbers_of_the_step_itself(rule, replayed):
    rule, task = rule(), small_mlp()
    expected = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task])
    assert torch.equal(estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task], CudaGraphs()), expected)
    assert len(replayed) == (1 if rule.period == 1 else 2)  # full steps and others


def test_steps_that_are_full_and_steps_that_are_not_take_turns(replayed):
    rule, task = ResidualRule(direction=False, orthogonalised=[], rotated=["matrix", "head"], turn_every=3), small_mlp()
    expected = estimates(PES(30, pairs=2), rule, [task])  # the first 20 steps are all full
    assert torch.equal(estimates(PES(30, pairs=2), rule, [task], CudaGraphs()), expected)
    assert not torch.equal(expected, estimates(PES(30, pairs=2), type(rule)(**rule.config | {"turn_every": 1}), [task]))


def test_runs_of_one_task_that_alternate_do_not_mix(replayed):
    task, other, rule = small_mlp(), small_mlp(5), AdamRule(0.01)
    tasks = [task, other, task]
    assert torch.equal(estimates(PES(3, pairs=2), rule, tasks, CudaGraphs()), estimates(PES(3, pairs=2), rule, tasks))
    assert len(replayed) == 2


def test_values_that_change_places_are_read_before_they_are_overwritten():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    overwrite([(first, second), (second, first[:]), (torch.empty(1), torch.ones(1))])
    assert first.tolist() == [3, 4]
    assert second.tolist() == [1, 2]


def test_it_records_anew_for_another_rule_or_number_of_runs(replayed):
    task, advance = small_mlp(), CudaGraphs()
    for rule, pairs in ((AdamRule(0.01), 2), (AdamRule(0.03), 2), (ResidualRule(), 3)):
        expected = estimates(PES(3, pairs=pairs), rule, [task])
        assert torch.equal(estimates(PES(3, pairs=pairs), rule, [task], advance), expected)
    assert len(replayed) == 3


def test_a_rule_whose_parameters_moved_is_recorded_anew(replayed):
    rule, task, advance = AdamRule(0.01), small_mlp(), CudaGraphs()
    estimates(PES(3, pairs=2), rule, [task], advance)
    rule.double().float()
    estimates(PES(3, pairs=2), rule, [task], advance)
    assert len(replayed) == 2


def test_where_recording_fails_steps_are_made_one_by_one_and_the_reason_is_given_once(replayed, monkeypatch):
    def refused(_):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(cuda_graphs, "record", refused)
    rule, task = AdamRule(0.01), small_mlp()
    with pytest.warns(UserWarning, match="not recorded: RuntimeError: operation not permitted") as warned:
        found = estimates(PES(3, pairs=2), rule, [task], CudaGraphs())
    assert len([one for one in warned if "not recorded" in str(one.message)]) == 1
    assert torch.equal(found, estimates(PES(3, pairs=2), rule, [task]))


def test_gradients_are_never_recorded(replayed):
    estimates(TruncatedBackprop(3, 2), AdamRule(0.01), [small_mlp()], CudaGraphs())
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
    advance = CudaGraphs(CompiledAdvance()) if compiled else CudaGraphs()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not (compiled|recorded).*")
        expected = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task])
        found = estimates(PES(3, pairs=2, meta_loss=LOSS), rule, [task], advance)
    tolerance = 1e-2 * float(expected.abs().max()) if compiled else 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=tolerance)


@pytest.mark.gpu
def test_every_family_of_broad_is_recorded():
    """Nothing in a task may copy from the CPU or wait for the device."""
    rule = AdamRule(0.01).to("cuda")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not recorded.*")
        for family in make_families("broad"):
            found = estimates(PES(2, pairs=2), rule, [family.sample(generator(1))], CudaGraphs())
            assert found.isfinite().any(), family.name
