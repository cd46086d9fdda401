"""The search for better θ beside a run: what it asks for, how it moves, when it gives the start back, and its pace."""

import itertools
import math

import pytest
import torch

from lightning_lopt import AdamRule, ResidualRule
from lightning_lopt.meta.rounds import RoundSchedule
from lightning_lopt.meta.search import ERROR_RATE, Search, SequentialTest


def rounds(search, loss, count, scale=1e-3):
    for _ in range(count):
        particles = search.ask()["log_lr"]
        search.tell(torch.stack([loss(float(value)) for value in particles]), scale)


def bowl(best, floor=1.0):
    return lambda value: torch.tensor(floor + (value - best) ** 2)


def test_particles_are_antithetic_about_theta_and_end_with_the_start():
    search = Search(ResidualRule(), pairs=3, sigma=0.4)
    first = search.ask()["constants.log_step_size"]
    assert first.shape == (7, 4) == (search.particles, 4)
    torch.testing.assert_close((first[:3] + first[3:6]) / 2, first[6:].expand(3, 4))
    search.tell(torch.arange(7.0), 1.0)
    second = search.ask()["constants.log_step_size"]
    assert second.shape == (8, 4) == (search.particles, 4)
    assert torch.equal(second[7], first[6])
    assert not torch.equal(second[6], first[6])
    torch.testing.assert_close((second[:3] + second[3:6]) / 2, second[6:7].expand(3, 4))
    assert not torch.equal(second[0] - second[6], first[0] - first[6])


def test_perturbations_have_the_stated_size_and_are_mostly_shared():
    noise = Search(ResidualRule(), pairs=20_000, sigma=0.4)._noise()["constants.log_step_size"]
    covariance = noise.T.cov()
    assert torch.allclose(covariance.diagonal(), torch.tensor(0.16), rtol=0.05)
    assert torch.allclose(covariance[0, 1:], torch.tensor(0.8 * 0.16), rtol=0.06)


def test_one_round_by_hand():
    search = Search(AdamRule(1e-3), sigma=0.5, gain=1.0)
    here, noise = float(search.start["log_lr"]), float(search._noise()["log_lr"][0])
    search.tell(torch.tensor([2.0, 3.0, 2.5]), 0.01)  # relative difference of the pair: -0.4
    assert float(search.theta["log_lr"]) == pytest.approx(here + 0.5 * 0.4 * noise)


@pytest.mark.parametrize("away", [-3.0, 2.0])
def test_finds_the_bottom_of_a_bowl(away):
    search = Search(AdamRule(1e-3))
    best = math.log(1e-3) + away
    rounds(search, bowl(best), 30)
    assert float(search.chosen["log_lr"]) == pytest.approx(best, abs=0.3)
    assert search.improving


def test_no_round_moves_further_than_sigma():
    search = Search(AdamRule(1e-3), sigma=0.3)
    before = float(search.theta["log_lr"])
    rounds(search, lambda value: torch.tensor(1.0 + (value > before) - (value < before)), 1)
    assert abs(float(search.theta["log_lr"]) - before) == pytest.approx(0.3)


def test_where_nothing_matters_nothing_moves():
    search = Search(AdamRule(1e-3))
    rounds(search, lambda _: torch.tensor(0.7), 5)
    assert torch.equal(search.theta["log_lr"], search.start["log_lr"])
    assert search.evidence == 0


def test_what_turns_out_worse_is_handed_back():
    search = Search(AdamRule(1e-3))
    start = math.log(1e-3)
    rounds(search, bowl(start + 2.0), 4)
    assert torch.equal(search.chosen["log_lr"], search.theta["log_lr"])
    moved = float(search.theta["log_lr"])
    assert moved > start
    rounds(search, lambda value: torch.tensor(math.exp(value - start)), 2)  # now less is better
    assert not search.improving
    assert torch.equal(search.chosen["log_lr"], search.start["log_lr"])


def trial(**arguments):
    return SequentialTest(AdamRule(1e-3), entries=("log_lr",), **arguments)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_trial_believes_the_better_side_after_six_comparisons(side):
    tried, start = trial(sigma=0.5), math.log(1e-3)
    torch.testing.assert_close(tried.ask()["log_lr"], torch.tensor([start + 0.5, start - 0.5]))
    used = []
    for _ in range(8):
        rounds(tried, lambda value: torch.tensor(2 - side * (value - start)), 1)
        used.append(float(tried.chosen["log_lr"]))
    torch.testing.assert_close(tried.ask()["log_lr"], torch.tensor([start + side * 0.5, start]))
    assert used == pytest.approx([start] * 6 + [start + side * 0.5] * 2)
    assert tried.evidence == pytest.approx(-7 * math.log(1.8))


def test_a_lost_comparison_costs_and_sides_are_chosen_anew():
    tried, up, down = trial(), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert tried.tell(up, 1e-3) == 0  # the upper side
    assert tried.tell(up, 1e-3) == pytest.approx(-0.5)
    assert tried.tell(down, 1e-3) == pytest.approx(1.0)
    assert tried.evidence == pytest.approx(-math.log(1.8) - math.log(0.2))
    assert tried.theta is tried.start
    tried.tell(down, 1e-3)
    assert tried.theta["log_lr"] < tried.start["log_lr"]
    assert tried.tell(torch.tensor([math.nan, 1.0]), 1e-3) == 1.0
    assert tried.evidence == pytest.approx(-math.log(1.8) - 2 * math.log(0.2))


def test_where_nothing_matters_a_trial_stays_where_it_is():
    tried = trial()
    rounds(tried, lambda _: torch.tensor(0.7), 5)
    assert tried.theta is tried.start
    assert tried.evidence == 0


def test_noise_passes_for_evidence_in_one_fit_of_twenty_at_most():
    """At any time, not only at the end."""
    noise, believed = torch.randn(500, 30, 2, generator=torch.Generator().manual_seed(0)).exp(), 0
    for fit in noise:
        tried = trial()
        believed += any(tried.tell(losses, 1e-3) is not None and tried.improving for losses in fit)
    assert 0 < believed <= ERROR_RATE * len(noise)


def test_losses_that_are_not_finite_push_away():
    search = Search(AdamRule(1e-3), sigma=0.5)
    start, noise = float(search.start["log_lr"]), float(search._noise()["log_lr"][0])
    search.tell(torch.tensor([math.inf, 1.0, 1.0]), 0.01)
    assert (float(search.theta["log_lr"]) - start) * noise < 0
    rounds(search, lambda _: torch.tensor(math.nan), 3)
    assert math.isfinite(float(search.theta["log_lr"]))
    assert math.isfinite(search.evidence)


def test_a_present_theta_that_diverges_speaks_for_the_start():
    search = Search(AdamRule(1e-3))
    search.tell(torch.tensor([1.0, 0.5, 0.7]), 0.01)
    search.tell(torch.tensor([0.5, 0.5, math.nan, 0.5]), 0.01)
    assert search.evidence == pytest.approx(2.0)
    assert not search.improving


@pytest.mark.parametrize("kind", [lambda: Search(AdamRule(1e-3)), trial], ids=["search", "trial"])
@pytest.mark.parametrize("before", [0, 3])
def test_stop_and_resume_is_no_stop(kind, before):
    straight, stopped = kind(), kind()
    for search in (straight, stopped):
        rounds(search, bowl(-2.0), before)
    resumed = kind()
    resumed.load_state_dict(stopped.state_dict())
    for search in (straight, resumed):
        rounds(search, bowl(-2.0), 3)
    assert torch.equal(straight.theta["log_lr"], resumed.theta["log_lr"])
    assert straight.evidence == resumed.evidence
    with pytest.raises(ValueError, match="the saved search is of"):
        Search(ResidualRule()).load_state_dict(stopped.state_dict())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pairs": 0}, "pairs must be"),
        ({"sigma": 0.0}, "sigma must be"),
        ({"gain": math.inf}, "gain must be"),
        ({"memory": 1.0}, "memory must lie"),
        ({"entries": ("no_such",)}, "no entry of θ .* fits .*; name some of log_lr"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        Search(AdamRule(1e-3), **arguments)


@pytest.mark.parametrize("total", [100, 1000, 30_000])
@pytest.mark.parametrize("share", [0.05, 0.1, 1.0])
def test_rounds_keep_to_the_budget_and_to_the_first_half(total, share):
    pace, cost, spent, now, starts = RoundSchedule(total, share, 22, 20), 70.0, 0.0, 0, []
    while (start := pace.next_start(now, spent, cost)) is not None:
        starts.append(start)
        now, spent = start + 22, spent + cost
    assert spent <= share * total
    assert spent + cost > share * total or starts[-1] + 22 > total / 2 - 22 - 20  # none is left out without a reason
    assert all(later - sooner >= 22 + 20 for sooner, later in itertools.pairwise(starts))
    assert not starts or starts[0] == 0
    assert not starts or starts[-1] + 22 <= total / 2


def test_no_round_is_before_the_first():
    """Rounds spread over the steps from 300 to 1500."""
    assert RoundSchedule(3000, 0.1, 20, 20, first=300).next_start(0, 0.0, 30.0) == 300
    assert RoundSchedule(3000, 0.1, 20, 20, first=300).next_start(350, 150.0, 30.0) == math.ceil(
        300 * 5**0.5
    )  # of 300 to 1500


def test_rounds_are_spread_over_the_logarithm_of_the_step():
    pace, spent, now, starts = RoundSchedule(30_000, 0.1, 22, 1), 0.0, 0, []
    while (start := pace.next_start(now, spent, 300.0)) is not None:
        starts.append(start + 22)
        now, spent = start + 22, spent + 300.0
    ratios = [later / sooner for sooner, later in itertools.pairwise(starts)]
    assert len(starts) == 10
    assert max(ratios) < 2.2
    assert min(ratios) > 1.7
