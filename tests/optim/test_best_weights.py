"""Where the validation loss rises, the parameters are those of its lowest value again."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, LossGuard, ResidualRule, UpdateRule
from lightning_lopt.meta.rule_models import RuleModels
from lightning_lopt.optim.copies import BEST_WEIGHTS, GUARD_COPIES
from lightning_lopt.tasks import Quadratic
from lightning_lopt.tasks.transforms import ChangingDataTask


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 2)).to(dtype)


def train(model, optimizer, steps=5):
    """By default a twentieth of the run, from which on each validation loss counts by itself."""
    for _ in range(steps):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(optimizer.calls), dtype=torch.float32)
        loss = model(x.to(model[0].weight.dtype)).float().square().mean()
        loss.backward()
        optimizer.step(loss.detach())
        optimizer.zero_grad()


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(first, second):
    return all(map(torch.equal, first, second))


def copies(optimizer):
    return [key for state in optimizer.state.values() for key in state if key == BEST_WEIGHTS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"state_dtype": torch.bfloat16}, {"guard": LossGuard(lr=1e-3)}])
def test_a_rise_sets_parameters_back_bit_for_bit(dtype, settings):
    model = model_of(dtype)
    optimizer = LearnedOptimizer(model, "base", total_steps=100, **settings)
    train(model, optimizer)
    assert not optimizer.validated(3.0)
    train(model, optimizer)
    assert not optimizer.validated(1.0)
    best = values(model)
    train(model, optimizer)
    slightly_worse = values(model)
    assert not optimizer.validated(1.05)  # 2.5 % of the range of losses
    assert equal(values(model), slightly_worse)
    for _ in range(2):
        train(model, optimizer)
        assert not optimizer.validated(2.0)
        train(model, optimizer)
        assert not equal(values(model), best)
        assert optimizer.validated(1.5)
        assert equal(values(model), best)
    train(model, optimizer)
    assert not optimizer.validated(0.9)
    better = values(model)
    train(model, optimizer)
    assert not optimizer.validated(2.0)
    train(model, optimizer)
    assert optimizer.validated(2.0)
    assert equal(values(model), better)
    assert optimizer.guard_state in ("off", "active")


def test_a_loss_that_is_not_finite_sets_nothing_back():
    model = model_of()
    optimizer = LearnedOptimizer(model, "base", total_steps=100)
    for loss in (2.0, 1.0):
        train(model, optimizer)
        optimizer.validated(loss)
    train(model, optimizer)
    optimizer.validated(2.0)
    before = values(model)
    assert not optimizer.validated(float("nan"))
    assert equal(values(model), before)
    train(model, optimizer)
    assert optimizer.validated(2.0)


def test_there_is_no_copy_without_validation_or_where_the_rule_does_not_go_back():
    model = model_of()
    optimizer = LearnedOptimizer(model, "base", total_steps=100)
    optimizer.validated(1.0)  # before the first step, when nothing is trained
    train(model, optimizer)
    assert not copies(optimizer)
    optimizer.validated(0.9)
    assert len(copies(optimizer)) == len(list(model.parameters()))
    other = LearnedOptimizer(model, AdamRule(1e-3), total_steps=100)
    train(model, other)
    other.validated(1.0)
    assert not copies(other)


def test_no_weights_are_mixed_where_a_parameter_joined_after_the_lowest_loss():
    model = model_of()
    optimizer = LearnedOptimizer(model, "base", total_steps=100)
    model[2].requires_grad_(False)
    for loss in (2.0, 1.0):
        train(model, optimizer)
        optimizer.validated(loss)
    model[2].requires_grad_(True)
    for _ in range(2):
        train(model, optimizer)
        before = values(model)
        assert not optimizer.validated(2.0)
        assert equal(values(model), before)
    train(model, optimizer)
    optimizer.validated(0.5)
    best = values(model)
    for loss in (2.0, 2.0):
        train(model, optimizer)
        was_set_back = optimizer.validated(loss)
    assert was_set_back
    assert equal(values(model), best)


def test_complex_parameters_are_set_back():
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
    optimizer = LearnedOptimizer([("w", weight)], "base", total_steps=10)
    for loss in (2.0, 1.0, 2.0, 2.0):
        weight.grad = torch.randn(3, 4, dtype=torch.complex64)
        optimizer.step(1.0)
        if loss == 1.0:
            best = weight.detach().clone()
        optimizer.validated(loss)
    assert torch.equal(weight.detach(), best)


@pytest.mark.parametrize("guard", [False, True])
def test_stop_and_resume_is_no_stop(guard):
    def finished(model, optimizer):
        train(model, optimizer)
        was_set_back = optimizer.validated(2.0)
        train(model, optimizer)
        return was_set_back, values(model)

    model = model_of()
    optimizer = LearnedOptimizer(model, "base", total_steps=100, guard=guard)
    for loss in (2.0, 1.0, 2.0):
        train(model, optimizer)
        optimizer.validated(loss)
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    was_set_back, expected = finished(model, optimizer)
    assert was_set_back
    model = model_of()
    model.load_state_dict(saved[0])
    optimizer = LearnedOptimizer(model, "base", total_steps=100, guard=guard)
    optimizer.load_state_dict(saved[1])
    was_set_back, resumed = finished(model, optimizer)
    assert was_set_back
    assert equal(resumed, expected)


def test_a_damaged_copy_is_left_out_and_then_nothing_is_set_back():
    model = model_of()
    optimizer = LearnedOptimizer(model, "base", total_steps=100)
    for loss in (2.0, 1.0):
        train(model, optimizer)
        optimizer.validated(loss)
    saved = optimizer.state_dict()
    damaged = [torch.zeros(3), "weights", saved["state"][2][BEST_WEIGHTS].to_sparse(), torch.empty(7, device="meta")]
    for number, value in enumerate(damaged):
        saved["state"][number][BEST_WEIGHTS] = value
    optimizer.load_state_dict(saved)
    assert len(copies(optimizer)) == len(list(model.parameters())) - 4
    for _ in range(2):
        train(model, optimizer)
        before = values(model)
        assert not optimizer.validated(2.0)
        assert equal(values(model), before)


def test_a_guard_goes_on_from_the_weights_that_were_set_back():
    model = model_of()
    optimizer = LearnedOptimizer(model, "base", total_steps=100, guard=True)
    for loss in (2.0, 1.0):
        train(model, optimizer)
        optimizer.validated(loss)
    best = values(model)
    for loss in (2.0, 2.0):
        train(model, optimizer, 15)
        optimizer.validated(loss)
    for key in GUARD_COPIES:
        assert equal([optimizer.state[p][key] for p in model.parameters()], best)


def test_models_side_by_side_are_set_back_one_by_one():
    rule = ResidualRule(direction=False, controller=False, reads_validation=True)
    models = RuleModels([rule], Quadratic(torch.tensor([1.0, 4.0])), 100, 3, 0)
    best = {}
    rises = [[2.0, 0.5, 2.0], [2.0, 0.6, float("nan")]]
    for losses in ([3.0, 3.0, 3.0], [1.0, 1.0, 1.0], *rises):
        with torch.no_grad():
            models.advance(5)  # a twentieth of the run
        before = models.runs.params["x"]
        models.validated(torch.tensor(losses))
        if losses[0] == 1.0:
            best = before
    after = models.runs.params["x"]
    assert torch.equal(after[0], best[0])
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(before[0], best[0])


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.layers(x)

    def __getitem__(self, index):
        return self.layers[index]


@pytest.mark.parametrize("knows_module", [True, False])
@pytest.mark.parametrize("resumes", [False, True])
def test_statistics_of_normalisation_are_set_back_with_the_weights_and_counters_are_not(knows_module, resumes):
    def optimizer_of(model):
        return LearnedOptimizer(model if knows_module else model.parameters(), "base", total_steps=100)

    def validated(loss):
        return optimizer.validated(loss) if knows_module else optimizer.validated(loss, model)

    model = Normalised()
    optimizer = optimizer_of(model)
    train(model, optimizer)
    validated(2.0)
    train(model, optimizer)
    validated(1.0)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    validated(1.5)
    if resumes:
        saved, weights = optimizer.state_dict(), model.state_dict()
        model = Normalised()
        model.load_state_dict(weights)
        optimizer = optimizer_of(model)
        optimizer.load_state_dict(saved)
    train(model, optimizer)
    assert not torch.equal(model.state_dict()["layers.1.running_var"], best["layers.1.running_var"])
    assert validated(1.4)
    for name, value in model.state_dict().items():
        is_counter = name in ("passes", "layers.1.num_batches_tracked")
        assert torch.equal(value, best[name]) != is_counter, name


def test_statistics_of_another_model_and_damaged_ones_are_not_restored():
    model = Normalised()
    optimizer = LearnedOptimizer(model, "base", total_steps=100)
    for loss in (2.0, 1.0, 1.5):
        train(model, optimizer)
        optimizer.validated(loss)
    train(model, optimizer)
    saved, before = optimizer.state_dict(), copy.deepcopy(model.state_dict())
    optimizer._run.best_statistics = [torch.zeros(3), torch.ones(3)]
    assert not optimizer.validated(1.4)  # weights without their statistics would be worse than either
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for damage in ("text", [torch.zeros(7, dtype=torch.int64)], [1.0], [torch.zeros(7).to_sparse()]):
        saved["param_groups"][0]["best_statistics"] = damage
        with pytest.raises(ValueError, match="its running statistics are no list of tensors"):
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_model_and_optimizer_go_back_together(duplicate):
    model = Normalised()
    optimizer, best = LearnedOptimizer(model, "base", total_steps=100), {}
    for loss in (2.0, 1.0, 1.5):
        train(model, optimizer)
        optimizer.validated(loss)
        if loss == 1.0:
            best = copy.deepcopy(model.state_dict())
    model, optimizer = duplicate((model, optimizer))
    train(model, optimizer)
    assert optimizer.validated(1.4)
    assert torch.equal(model.layers[1].running_var, best["layers.1.running_var"])
    assert torch.equal(model.layers[0].weight, best["layers.0.weight"])


def test_statistics_of_networks_that_the_optimizer_does_not_train_are_left_alone():
    student, teacher = Normalised(), Normalised()
    both = nn.ModuleList([student, teacher, nn.LazyBatchNorm1d()])
    optimizer = LearnedOptimizer(student.parameters(), "base", total_steps=100)
    for loss in (2.0, 1.0, 1.5, 1.4):
        train(student, optimizer)
        teacher(torch.randn(6, 5))
        before = copy.deepcopy(both[:2].state_dict())
        is_back = optimizer.validated(loss, both)
    assert is_back
    assert torch.equal(teacher.layers[1].running_var, before["1.layers.1.running_var"])
    assert not torch.equal(student.layers[1].running_var, before["0.layers.1.running_var"])


def test_carried_entries_are_not_set_back():
    """As with buffers of a module: here the number of steps, by which the data change."""
    rule = ResidualRule(direction=False, controller=False, reads_validation=True)
    bowls = [Quadratic(torch.tensor(curvatures)) for curvatures in ([1.0, 4.0], [4.0, 1.0])]
    models = RuleModels([rule], ChangingDataTask(*bowls, change=50), 100, 2, 0)
    (carried,) = set(models.runs.params) - {"x"}
    for losses in ([3.0, 3.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]):
        with torch.no_grad():
            models.advance(5)
        before = models.runs.params["x"]
        models.validated(torch.tensor(losses))
    assert not torch.equal(models.runs.params["x"], before)
    assert models.runs.params[carried].tolist() == [20.0, 20.0]


def test_a_loss_whose_terms_grow_does_not_stop_the_training():
    """The reported loss has a term that grows with the steps, as the weighted divergence of many VAEs."""

    def final_loss(weight_of_term):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))
        x = torch.randn(256, 5, generator=torch.Generator().manual_seed(1))
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
        optimizer = LearnedOptimizer(model, "base", total_steps=200)
        for step in range(200):
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step(loss.detach())
            optimizer.zero_grad()
            if step % 10 == 9 and weight_of_term is not None:
                optimizer.validated(loss.item() + weight_of_term * step / 200)
        return loss.item()

    without = final_loss(None)
    assert final_loss(0.0) == pytest.approx(without, rel=0.05)
    for weight in (1.0, 10.0):  # 79 and 774 times as high before futile rollbacks ended reading
        assert final_loss(weight) < 2 * without


def test_a_rule_that_reads_losses_and_never_goes_back_is_left_alone():
    class Onward(ResidualRule):
        def rollback(self, shared):
            return UpdateRule.rollback(self, shared)

    rule = Onward(direction=False, controller=False, reads_validation=True)
    assert rule.rollback({"validation": torch.zeros(9, device="meta")}).is_due.device.type == "meta"
    model = model_of()
    optimizer = LearnedOptimizer(model, rule, total_steps=100)
    for loss in (2.0, 1.0, 2.0, 2.0):
        train(model, optimizer)
        assert not optimizer.validated(loss)
    assert not copies(optimizer)
