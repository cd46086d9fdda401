"""Steps that shorten where the validation loss rises."""

import math

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule
from lightning_lopt.rules.residual_parts.restraint import Restraint
from lightning_lopt.rules.residual_parts.validation import (
    CLEAR,
    FUTILE,
    LOWEST,
    TOLERANCE,
    blank_memory,
    factor_of,
    log_growth_of,
    memory_after,
    rollback_of,
)


def simulated(loss_of, checks, share=0.05):
    """The factor after each loss of a run, and the numbers of the losses that set parameters back.

    ``loss_of`` gives a loss from its number and from the parameters, which are a position that grows by 1 each time.
    """
    memory, after, set_back = blank_memory(torch.zeros((), dtype=torch.float64)), [], []
    position = best_position = 0
    for check in range(checks):
        loss = torch.tensor(float(loss_of(check, position)), dtype=torch.float64)
        memory = memory_after(memory, loss, torch.tensor(share * (check + 1)))
        after.append(float(factor_of(memory)))
        rollback = rollback_of(memory)
        best_position = position if bool(rollback.is_best) else best_position
        if bool(rollback.is_due):
            position = best_position
            set_back.append(check)
        position += 1
    return after, set_back


def memorising(step, fall=1):
    """A loss that falls from 2 to 1 over the positions up to ``fall``, and rises by ``step`` from each to the next."""
    return lambda check, position: 1.0 + (1.0 - position / fall if position < fall else step * (position - fall))


def factors(losses, share=0.05):
    """The factor after each of ``losses``, of which each comes after this share of the planned steps."""
    memory, after = blank_memory(torch.zeros((), dtype=torch.float64)), []
    for check, loss in enumerate(losses, 1):
        memory = memory_after(memory, torch.tensor(float(loss)), torch.tensor(share * check))
        after.append(float(factor_of(memory)))
    return after


def test_the_factor_is_that_of_the_formula():
    losses = [2.0, 1.0, 1.1, 1.3, 0.9, 1.0, 1.6]
    expected, log_factor, seen = [], 0.0, []
    for loss in losses:
        seen.append(loss)
        if len(seen) > 1:
            rise = (loss - min(seen)) / (max(seen) - min(seen))
            lost = min(max((rise - TOLERANCE) / (CLEAR - TOLERANCE), 0.0), 1.0)
            log_factor = min(max(log_factor + (loss == min(seen)) - lost, LOWEST), 0.0)
        expected.append(math.exp(log_factor))
    assert factors(losses) == pytest.approx(expected, rel=1e-5)
    assert min(expected) < 0.5


def test_a_falling_loss_shortens_nothing_and_a_rising_one_down_to_a_limit():
    assert factors([2.0 - 0.1 * check for check in range(12)]) == [1.0] * 12
    rising, set_back = simulated(memorising(0.2), 12)
    assert rising[-1] == pytest.approx(math.exp(LOWEST))
    assert rising == sorted(rising, reverse=True)
    assert len(set_back) >= 3


def test_noise_that_is_small_beside_the_progress_of_the_run_shortens_nothing():
    draws = torch.Generator().manual_seed(0)
    noisy = [2.0 * 0.7**check + 0.02 * float(torch.rand((), generator=draws)) for check in range(20)]
    assert factors(noisy) == [1.0] * 20


@pytest.mark.parametrize(("scale", "offset"), [(100.0, 0.0), (0.01, 0.0), (1.0, -100.0), (-1.0, 3.0)])
def test_neither_the_unit_of_the_loss_nor_a_constant_matters(scale, offset):
    losses = torch.tensor([2.0, 1.0, 1.1, 1.3, 0.9, 1.0, 1.6], dtype=torch.float64)
    same = factors((scale * losses + offset).tolist()) == pytest.approx(factors(losses.tolist()), rel=1e-4)
    assert same == (scale > 0)


def test_frequent_losses_are_averaged_and_count_less():
    jumping = [2.0, 1.0] + [1.2 if check % 2 else 0.9 for check in range(200)]
    assert factors(jumping, share=1 / 200)[-1] > 0.05
    often, seldom = (simulated(memorising(0.3), 60, share)[0] for share in (1 / 200, 1 / 20))
    assert often[12] > 5 * seldom[12]
    assert seldom[12] == pytest.approx(math.exp(LOWEST))


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda check, position: 3.0 - 0.2 * check if check < 10 else 4.0 - 0.02 * check,  # other data
        lambda check, position: 3.0 - 0.2 * check if check < 10 else 1.0 + 0.3 * (check - 9),  # a term that grows
        lambda check, position: 3.0 - 0.2 * min(check, 9) + 0.15 * max(check - 9, 0),  # a term that grows slowly
    ],
    ids=["jump", "ramp", "slow ramp"],
)
def test_a_loss_that_changes_by_itself_is_ignored_after_futile_rollbacks(loss_of):
    after, set_back = simulated(loss_of, 20)
    assert 1 <= len(set_back) <= 3
    assert after[-1] == 1.0
    assert min(after) < 0.7
    memory = blank_memory(torch.zeros(()))
    for check in range(30):  # ignored to the end
        memory = memory_after(memory, torch.tensor(float(loss_of(check, 0))), torch.tensor(0.05 * (check + 1)))
    assert (float(factor_of(memory)), bool(rollback_of(memory).is_due)) == (1.0, False)


def test_noise_does_not_end_the_reading_and_a_new_lowest_loss_resumes_it():
    draws = torch.Generator().manual_seed(0)
    for _ in range(100):  # flat, then falling, with noise of 1 %
        noise = (0.01 * torch.randn(14, generator=draws)).tolist()
        losses = [1.0 + noise[check] if check < 6 else 1.0 - 0.075 * (check - 5) + noise[check] for check in range(14)]
        memory = blank_memory(torch.zeros(()))
        for check, loss in enumerate(losses):
            memory = memory_after(memory, torch.tensor(loss), torch.tensor((check + 1) / 14))
        assert float(memory[-1]) == 0.0
    changed = [3.0, 2.0, 1.0, 4.0, 4.1, 4.2, 4.3, 4.2, 4.4, 4.3]
    memory = blank_memory(torch.zeros(()))
    for check, loss in enumerate([*changed, 0.9, 1.5, 1.4]):
        memory = memory_after(memory, torch.tensor(loss), torch.tensor((check + 1) / 20))
        assert (float(memory[-1]) >= FUTILE) == (check in range(7, 10))
    assert bool(rollback_of(memory).is_due)


def test_small_rises_after_each_rollback_are_not_taken_for_a_changed_loss():
    after, set_back = simulated(memorising(0.045), 30)
    assert len(set_back) >= 5
    assert after[-1] < 0.7


def test_among_frequent_losses_a_single_outlier_after_a_rollback_ends_nothing():
    def loss_of(check, position):
        return 5.0 if check == outlier else memorising(0.02, fall=20)(check, position)

    outlier = None
    rollbacks_without = simulated(loss_of, 200, share=1 / 200)[1]
    outlier = rollbacks_without[0] + 1
    assert len(simulated(loss_of, 200, share=1 / 200)[1]) >= len(rollbacks_without) - 1 >= 1


def test_a_loss_that_is_not_finite_changes_nothing():
    after = factors([2.0, 1.0, math.nan, math.inf, 1.2])
    assert after == pytest.approx(factors([2.0, 1.0, 1.0, 1.0, 1.2]), rel=1e-5)


def steps(rule, losses):
    """The updates of a run in which each step is followed by one of these validation losses."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 6))
    optimizer, updates = LearnedOptimizer([("w", weight)], rule, total_steps=10), []
    for loss in losses:
        weight.grad, before = torch.ones(6, 6).tril() + weight.detach(), weight.detach().clone()
        optimizer.step(1.0)
        updates.append(weight.detach() - before)
        if loss is not None:
            optimizer.validated(loss)
    return updates


def test_a_rise_shortens_the_next_step_and_no_loss_changes_no_bit():
    rule = ResidualRule(direction=False, controller=False, reads_validation=True)
    plain = steps(ResidualRule(direction=False, controller=False), [None] * 4)
    for told, never_told in zip(steps(rule, [None] * 4), plain, strict=True):
        assert torch.equal(told, never_told)
    *same, shortened = steps(rule, [2.0, 1.0, 2.0, None])
    assert all(map(torch.equal, same, plain[:-1]))
    assert torch.allclose(shortened, plain[-1] * math.exp(-1.0), rtol=1e-4, atol=1e-7)


def test_a_rule_that_does_not_read_it_ignores_it():
    rule = ResidualRule(direction=False, controller=False)
    for told, never_told in zip(steps(rule, [1.0, 2.0, 3.0]), steps(rule, [None] * 3), strict=True):
        assert torch.equal(told, never_told)


def test_trained_tensors_take_longer_steps_as_the_loss_falls_up_to_full_ones():
    memory, restraint = blank_memory(torch.zeros(())), Restraint()
    columns = {"structure": torch.ones(1, 10), "power": torch.ones(1), "careful": torch.full((1,), 1.0)}
    lengths = []
    for check, loss in enumerate([2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 1.1]):
        memory = memory_after(memory, torch.tensor(loss), torch.tensor(0.05 * (check + 1)))
        factors = restraint.factors(torch.zeros(3), columns, torch.ones(()), None, log_growth_of(memory))[0]
        lengths.append(float(factors.detach()))
    assert lengths == pytest.approx([math.exp(-x) for x in (0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.5)], rel=1e-5)


def rollbacks(losses, share):
    """Numbers of the losses, each after this share of the planned steps, at which parameters are set back."""
    memory, numbers = blank_memory(torch.zeros(())), []
    for check, loss in enumerate(losses):
        memory = memory_after(memory, torch.tensor(float(loss)), torch.tensor(share * (check + 1)))
        if bool(rollback_of(memory).is_due):
            assert not bool(rollback_of(memory).is_best)
            numbers.append(check)
    return numbers


@pytest.mark.parametrize("checks", [20, 100, 400])
def test_an_outlier_sets_nothing_back_and_a_rise_does_after_a_tenth_of_the_run(checks):
    falling = [2.0 - check / checks for check in range(checks)]
    outlier = [10.0 if check == checks // 2 else loss for check, loss in enumerate(falling)]
    assert rollbacks(outlier, 1 / checks) == []
    rising = falling[: checks // 2] + [1.5 + 2.0 * check / checks for check in range(checks // 2)]
    first_rollback = rollbacks(rising, 1 / checks)[0]
    assert 0.55 <= first_rollback / checks <= 0.75


def test_two_losses_of_one_step_are_no_two_rises():
    memory = blank_memory(torch.zeros(()))
    for progress, loss in ((0.1, 2.0), (0.2, 1.0), (0.3, 1.9), (0.3, 1.9)):
        memory = memory_after(memory, torch.tensor(loss), torch.tensor(progress))
    assert not bool(rollback_of(memory).is_due)
