"""LossGuard: rules that do harm are left in time, good ones are not, and what training goes on with is AdamW."""

import copy
import importlib.util
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, LossGuard, ScheduleFreeAdamRule, SGDRule, load_rule
from lightning_lopt.optim import guard_readings

SPEC = importlib.util.spec_from_file_location(
    "guard_benchmark", Path(__file__).parents[2] / "examples" / "benchmarks" / "guard.py"
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)
Altered, HARM = benchmark.Altered, benchmark.HARM


class Problem:
    """Noisy regression; batches follow from the number of the step, so that a run may go on anywhere."""

    def __init__(self, seed=0, offset=0.0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.target = torch.randn(6)
        self.offset = offset

    def step(self, optimizer, number):
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(number))
        noise = 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(1000 + number))
        loss = (self.model(x)[:, 0] - x @ self.target - noise).square().mean() + self.offset
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss) if isinstance(optimizer, LearnedOptimizer) else optimizer.step()
        return float(loss.detach()) - self.offset

    def train(self, optimizer, steps, first=0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.steps(optimizer, steps, first)

    def steps(self, optimizer, steps, first):
        return [self.step(optimizer, first + number) for number in range(steps)]


def values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def turns_bad(change, after=60):
    """Adam until ``after`` steps, then with changed updates."""
    return Altered(AdamRule(lr=0.003), lambda u, step: torch.where(step < after, u, change(u)))


@pytest.fixture(scope="module")
def end_with_adamw():
    problem = Problem()
    return sum(problem.train(torch.optim.AdamW(problem.model.parameters(), lr=1e-3), 250)[-20:])


@pytest.mark.parametrize("name", HARM)
def test_with_a_rule_that_does_harm_training_ends_as_with_adamw(name, end_with_adamw):
    problem = Problem()
    early = {"broken": lambda update, step: torch.where(step < 30, update, math.nan)}
    optimizer = LearnedOptimizer(
        problem.model, Altered(load_rule("base"), (HARM | early)[name]), total_steps=250, guard=True
    )
    assert sum(problem.train(optimizer, 250)[-20:]) < 1.1 * end_with_adamw
    assert optimizer.guard_switched
    assert optimizer.guard_state.startswith("switched at step ")
    assert optimizer._guard.switched_at <= (33 if name == "broken" else 25)


def test_off_keeps_nothing_and_on_changes_nothing_while_the_rule_does_well():
    runs = {}
    for guard in (False, True):
        problem = Problem()
        optimizer = LearnedOptimizer(problem.model, "base", total_steps=40, guard=guard)
        problem.train(optimizer, 40)
        runs[guard] = values(problem.model), optimizer
    assert torch.equal(runs[False][0], runs[True][0])
    assert [runs[guard][1].guard_state for guard in (False, True)] == ["off", "active"]
    assert not any(runs[guard][1].guard_switched for guard in (False, True))
    saved = runs[False][1].state_dict()
    assert "guard" not in saved["param_groups"][0]
    assert not any(key.startswith("guard") for state in saved["state"].values() for key in state)


def bytes_of(optimizer):
    return sum(x.nbytes for state in optimizer.state.values() for x in state.values())


@pytest.mark.parametrize("rule", [SGDRule(lr=0.01), AdamRule()], ids=["sgd", "adam"])
def test_memory_is_8_bytes_per_parameter_before_a_switch_and_not_more_after_it(rule):
    problem = Problem()
    entries = values(problem.model).numel()
    plain = LearnedOptimizer(problem.model, rule)
    problem.train(plain, 2)
    altered = Altered(rule, lambda u, step: torch.where(step < 40, u, math.nan))
    guarded = LearnedOptimizer(problem.model, altered, guard=True)
    problem.train(guarded, 40)
    assert bytes_of(guarded) == bytes_of(plain) + 8 * entries
    problem.train(guarded, 5, first=40)
    counts = 4 * len(guarded.state)
    assert guarded.guard_state.startswith("switched")
    assert bytes_of(guarded) <= 8 * entries + counts


def test_the_warning_says_step_cause_and_place():
    problem = Problem()
    optimizer = LearnedOptimizer(problem.model, turns_bad(lambda u: 300 * u), total_steps=200, guard=True)
    problem.train(optimizer, 60)
    with pytest.warns(UserWarning, match=r"LossGuard: training switched at step \d+, because .* those of step \d+ ag"):
        problem.steps(optimizer, 30, first=60)


def test_parameters_go_back_to_where_the_loss_was_good():
    problem = Problem()
    optimizer = LearnedOptimizer(problem.model, turns_bad(lambda u: 300 * u, after=100), total_steps=300, guard=True)
    past = [values(problem.model)]
    for number in range(140):
        problem.train(optimizer, 1, first=number)
        past.append(values(problem.model))
        if optimizer.guard_state != "active":
            break
    same = [step for step, earlier in enumerate(past[:-1]) if torch.equal(earlier, past[-1])]
    assert len(same) == 1
    assert 30 <= same[0] <= 100 < len(past)


def test_what_follows_a_switch_is_torchs_adamw_with_its_schedule():
    problem = Problem()
    optimizer = LearnedOptimizer(
        problem.model, Altered(SGDRule(), HARM["flipped"]), total_steps=100, weight_decay=0.1, guard=LossGuard(lr=0.01)
    )
    problem.train(optimizer, 7)
    assert optimizer.guard_state.startswith("switched at step 7,")
    twin = Problem()  # the parameters are those of the beginning
    assert torch.equal(values(problem.model), values(twin.model))
    adamw = torch.optim.AdamW(twin.model.parameters(), weight_decay=0.1)
    problem.train(optimizer, 93, first=7)
    peak = 0.01 * 100 / (90 - 7)  # makes up for 7 steps, and for those of the fall
    for number in range(7, 100):
        adamw.param_groups[0]["lr"] = peak * min((number - 6) / 10, 1) * min((1 - number / 100) / 0.2, 1)
        twin.train(adamw, 1, first=number)
    torch.testing.assert_close(values(problem.model), values(twin.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("late", [False, True], ids=["host", "accelerator"])
@pytest.mark.parametrize("stop", [13, 64, 85])
def test_a_stopped_run_goes_on_bit_for_bit_through_a_switch(stop, late, monkeypatch, tmp_path):
    monkeypatch.setattr(guard_readings, "at_once", lambda device: not late)

    def built(problem):
        return LearnedOptimizer(problem.model, turns_bad(lambda u: 300 * u), total_steps=110, guard=LossGuard())

    whole = Problem()
    optimizer = built(whole)
    losses = whole.train(optimizer, 110)
    assert optimizer.guard_state.startswith("switched")
    before, after = Problem(), Problem(seed=1)
    first = built(before)
    before.train(first, stop)
    torch.save({"model": before.model.state_dict(), "optimizer": first.state_dict()}, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    second = built(after)
    after.target = before.target
    after.model.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert after.train(second, 110 - stop, first=stop) == losses[stop:]
    assert torch.equal(values(after.model), values(whole.model))
    assert second.guard_state == optimizer.guard_state


def test_readings_that_come_late_switch_late_and_lead_to_the_same_place(monkeypatch):
    steps = {}
    for late in (False, True):
        monkeypatch.setattr(guard_readings, "at_once", lambda device, late=late: not late)
        problem = Problem()
        optimizer = LearnedOptimizer(problem.model, Altered(AdamRule(), HARM["flipped"]), total_steps=200, guard=True)
        while optimizer.guard_state == "active":
            problem.train(optimizer, 1)
        steps[late] = optimizer.calls
        assert torch.equal(values(problem.model), values(Problem().model))
    assert steps == {False: 7, True: 20}


def test_a_constant_in_the_loss_changes_nothing():
    runs = {}
    for offset in (0.0, -64.0):
        problem = Problem(offset=offset)
        optimizer = LearnedOptimizer(problem.model, turns_bad(lambda u: 300 * u), total_steps=150, guard=True)
        problem.train(optimizer, 150)
        runs[offset] = values(problem.model), optimizer.guard_state
    assert runs[0.0][1] == runs[-64.0][1] != "active"
    torch.testing.assert_close(runs[0.0][0], runs[-64.0][0], rtol=1e-4, atol=1e-5)


def test_without_a_loss_steps_are_still_watched():
    for change in HARM.values():
        problem = Problem()
        rule = Altered(AdamRule(lr=0.003), lambda u, step, change=change: change(u, step + 295))
        optimizer = LearnedOptimizer(problem.model, rule, total_steps=500, guard=True)
        problem.train(optimizer, 1)  # so that gradients are there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(25):
                optimizer.step()
        assert optimizer.guard_state.startswith("switched")


def test_gradients_that_are_not_finite_are_not_the_rules_fault():
    weight = nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([weight], AdamRule(), guard=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(60):
            weight.grad = torch.full((3,), math.nan if step % 4 else 1.0)
            optimizer.step(1.0)
    assert optimizer.guard_state == "active"


def test_a_rule_may_try_again_once():
    problem = Problem()
    rule = Altered(AdamRule(lr=0.003), lambda u, step: torch.where(step == 60, u + 2, u))
    optimizer = LearnedOptimizer(problem.model, rule, guard=LossGuard(retries=1))
    states = []
    for number in range(240):
        problem.train(optimizer, 1, first=number)
        if optimizer.guard_state not in states[-1:]:
            states.append(optimizer.guard_state)
    assert states == ["active", "switched at step 67, because the loss rose above where it began", "active"]


def test_checkpoints_with_and_without_a_guard():
    problem = Problem()
    switched = LearnedOptimizer(problem.model, Altered(AdamRule(), HARM["flipped"]), total_steps=99, guard=True)
    problem.train(switched, 12)
    plain = LearnedOptimizer(problem.model, AdamRule(), total_steps=99)
    with pytest.warns(UserWarning, match="without guard=True the rule begins anew"):
        plain.load_state_dict({**switched.state_dict(), "param_groups": as_of(plain, switched)})
    problem.train(plain, 3)
    guarded = LearnedOptimizer(problem.model, AdamRule(), total_steps=99, guard=True)
    guarded.load_state_dict(plain.state_dict())
    problem.train(guarded, 3)
    assert guarded.guard_state == "active"
    plain.load_state_dict(guarded.state_dict())
    assert set(next(iter(plain.state.values()))) == {"momentum", "second_moment", "count"}


def as_of(optimizer, other):
    """The saved groups of ``other`` with the format of ``optimizer``: the same rule under another name."""
    groups = other.state_dict()["param_groups"]
    return [{**group, "format": optimizer.param_groups[0]["format"]} for group in groups]


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"numbers": torch.zeros(3), "pending": torch.zeros(0, 7)},
        {"numbers": None},
        "guard",
    ],
    ids=["empty", "short", "half", "text"],
)
def test_a_damaged_guard_is_refused(damaged):
    problem = Problem()
    optimizer = LearnedOptimizer(problem.model, AdamRule(), guard=True)
    problem.train(optimizer, 2)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["guard"] = damaged
    with pytest.raises(ValueError, match="damaged: its guard is invalid"):
        optimizer.load_state_dict(saved)
    assert optimizer.steps_made == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_of_the_optimizer_has_a_guard_of_its_own(copied):
    problem = Problem()
    optimizer = LearnedOptimizer(problem.model, AdamRule(), guard=True)
    problem.train(optimizer, 3)
    other = copied(optimizer)
    problem.train(optimizer, 3)
    assert (optimizer._guard.calls, other._guard.calls) == (6, 3)


def test_averages_of_a_rule_that_was_left_are_no_longer_asked_for():
    problem = Problem()
    optimizer = LearnedOptimizer(
        problem.model, Altered(ScheduleFreeAdamRule(), HARM["flipped"]), total_steps=99, guard=True
    )
    problem.train(optimizer, 12)
    assert optimizer.guard_state.startswith("switched")
    assert optimizer.evaluation_params() == {}


def test_diagnostics_say_who_trains():
    problem = Problem()
    optimizer = LearnedOptimizer(problem.model, Altered(AdamRule(), HARM["flipped"]), total_steps=99, guard=True)
    seen = []
    for number in range(9):
        optimizer.signals.wants_diagnostics = True
        problem.train(optimizer, 1, first=number)
        seen.append(float(optimizer.signals.diagnostics["guard_switched"]))
    assert seen == [0.0] * 7 + [1.0] * 2


def test_a_group_that_is_frozen_by_its_rate_is_no_cause_and_stays_frozen():
    problem = Problem()
    groups = [
        {"params": list(layer.parameters()), "lr": rate}
        for layer, rate in ((problem.model[0], 0.0), (problem.model[2], 1.0))
    ]
    optimizer = LearnedOptimizer(groups, Altered(AdamRule(), HARM["broken"]), total_steps=600, guard=True)
    before = values(problem.model[0])
    problem.train(optimizer, 310)
    assert optimizer.guard_state.startswith("switched at step 303, because its updates were not finite")
    assert torch.equal(values(problem.model[0]), before)


def test_arguments_out_of_range():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="guard must be True, False or a LossGuard"):
        LearnedOptimizer([weight], AdamRule(), guard="yes")
    for wrong in ({"lr": 0.0}, {"lr": math.inf}, {"retries": -1}, {"retries": 0.5}):
        with pytest.raises(ValueError, match="LossGuard's"):
            LossGuard(**wrong)
