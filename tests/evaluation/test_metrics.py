"""Metrics against numbers worked out by hand, and against independent versions."""

import math
import pickle
from itertools import product

import numpy as np
import pytest
import torch
from made_runs import noisy_run, run
from scipy.stats import trim_mean
from torchmetrics import MetricCollection

from lightning_lopt.evaluation import metrics as m
from lightning_lopt.evaluation.metrics.scores import SMOOTHING

NAN, INF = math.nan, math.inf


def speedup(ours, reference, scale=1.0):
    return m.step_speedup(run(ours), run(reference), scale).tolist()


def test_smoothing_is_a_mean_over_the_last_windows():
    values = [0.9, 0.7, 0.5, 0.3, 0.2, 0.1]
    expected = [np.mean(values[max(0, end - SMOOTHING) : end]) for end in range(1, 7)]
    assert m.smoothed(run(values), 1.0)[:, 0].tolist() == pytest.approx(expected)


def test_speedup_by_hand():
    """Ten steps, a window each. Smoothed over five, ours is 1, 1, 2/3, 1/2, 0.4, 0.2, and then the floor."""
    ours = [1.0, 1.0] + [0.0] * 8
    reference = [1.0] * 7 + [0.5] * 3  # ends at (2 * 1 + 3 * 0.5) / 5 = 0.7, which ours reaches at step 3
    assert speedup(ours, reference) == [pytest.approx(10 / 3)]
    assert speedup(reference, ours) == [pytest.approx(3 / 10)]


def test_a_reference_on_a_plateau_is_charged_its_whole_horizon():
    ours = [1.0] * 2 + [0.4] * 8  # smoothed 0.52 at step 6, 0.4 at step 7
    reference = [1.0] * 2 + [0.5] * 8  # at 0.5 from step 7 on
    assert speedup(ours, reference) == [pytest.approx(10 / 7)]


def test_against_itself_it_is_one_and_exchanging_inverts():
    runs = [noisy_run("a", seed) for seed in range(4)] + [noisy_run("b", 9, level=0.001)]
    for ours, reference in product(runs, runs):
        forth, back = m.step_speedup(ours, reference, 2.0), m.step_speedup(reference, ours, 2.0)
        torch.testing.assert_close(forth * back, torch.ones(3, dtype=torch.float64))
        if ours is reference:
            assert forth.tolist() == [1.0] * 3


def test_ties_and_runs_that_never_get_there():
    good, flat = [0.9, 0.5, 0.2, 0.1, 0.1], [1.0] * 5
    broken = [0.9, NAN, NAN, NAN, NAN]
    assert speedup(broken, good) == [pytest.approx(1 / 5)]  # good is as low at once
    assert speedup(flat, good) == [pytest.approx(1 / 5)]
    assert speedup(broken, broken) == [1.0]
    assert speedup([INF] * 5, [9.0] * 5) == [1.0]
    # Both below 1 % of the uninformed loss: who was there first counts, not who went lower.
    fast, slow = [0.0] * 5 + [0.002] * 5, [0.04] * 2 + [0.0] * 8
    assert speedup(fast, slow) == [pytest.approx(6 / 1)]  # (0.04 + 0 * 4) / 5 < 0.01 at step 6


def test_steps_are_counted_at_ends_of_windows():
    ours = noisy_run("a", 0, horizon=1000, seeds=1)
    target = m.smoothed(ours, 2.0)[50]
    first = int((m.smoothed(ours, 2.0)[:, 0] <= target + 1e-9).nonzero()[0])
    assert m.steps_to(ours, target, 2.0).tolist() == [10.0 * (first + 1)]
    assert m.steps_to(ours, torch.tensor([0.0]), 2.0).tolist() == [INF]


def test_log_ratio_and_levels_by_hand():
    losses, others = torch.tensor([0.18, 0.0, NAN, 8.0]), torch.tensor([0.38, 0.0, 0.0, INF])
    expected = [math.log(0.10 / 0.20), 0.0, math.log(1.51 / 0.01), 0.0]
    assert m.log_ratio(losses, others, 2.0).tolist() == pytest.approx(expected, abs=1e-6)


def test_normalised_loss_by_hand():
    reference = run(torch.tensor([[0.2, 0.4, 0.6]]))  # median 0.4 of 2: b = 0.2
    assert m.normalised_loss(run(torch.tensor([[0.4, 2.0, 0.0]])), reference, 2.0).tolist() == pytest.approx(
        [0.0, 1.0, -0.25], abs=1e-6
    )
    # Where the reference learns nothing either, 1 % of the uninformed loss is the unit.
    hopeless = run([2.0])
    assert m.normalised_loss(run([1.98]), hopeless, 2.0).tolist() == pytest.approx([-1.0], abs=1e-4)


def test_best_validation_loss_skips_what_is_not_finite():
    ours = run([1.0, 1.0, 1.0], valid=[0.5, NAN, 0.9])
    assert m.final_loss(ours, "best_valid").tolist() == [0.5]
    assert m.final_loss(ours, "valid").tolist() == pytest.approx([0.9])
    assert m.final_loss(run([1.0], valid=[NAN]), "best_valid").tolist() == [INF]


def test_wins_and_ties():
    ours, reference = torch.tensor([0.1, 0.3, 0.002, NAN, 7.0]), torch.tensor([0.2, 0.2, 0.009, 0.5, INF])
    assert m.wins(ours, reference, 1.0).tolist() == [1.0, 0.0, 0.5, 0.0, 0.5]


def test_divergence():
    ours = run(
        torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, NAN, 0.5, 99.0]]),
        final_train=[0.5, 0.5, 1.51, 1.49],
        valid=torch.full((2, 4), 50.0),
    )
    assert m.diverged(ours, 1.0).tolist() == [False, True, True, False]


def test_iqm_is_scipys_trimmed_mean():
    for problems, seeds in ((1, 1), (1, 3), (3, 3), (4, 5), (7, 2)):
        scores = torch.rand(problems, seeds, dtype=torch.float64)
        assert float(m.iqm(scores)) == pytest.approx(trim_mean(scores.numpy(), 0.25, axis=None), rel=1e-12)
    assert float(m.iqm(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))) == 2.5
    assert float(m.median(torch.tensor([[1.0, 2.0], [3.0, 10.0]]))) == 2.5
    assert float(m.worst(torch.tensor([[0.2, 0.4, 0.6], [3.0, 1.0, 9.0]]))) == 3.0


def test_bootstrap_against_all_resamples():
    """Two problems with two seeds: 16 equally likely resamples, so the distribution of the mean is known."""
    scores = torch.tensor([[0.0, 1.0], [10.0, 14.0]], dtype=torch.float64)
    means = [np.mean(pair) for pair in product([0.0, 0.5, 0.5, 1.0], [10.0, 12.0, 12.0, 14.0])]
    for level in (0.95, 0.6, 0.3):
        expected = np.quantile(np.repeat(means, 1000), [(1 - level) / 2, (1 + level) / 2])
        found = m.interval(scores, m.mean, level=level, resamples=20_000)
        assert found == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution():
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    within = scores.var(1, correction=0).mean()
    error = math.sqrt(float(within) / scores.numel())
    low, high = m.interval(scores, m.mean)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert m.interval(scores, m.mean) == (low, high)  # seeded
    assert m.interval(scores, m.mean, seed=1) != (low, high)
    assert m.interval(scores[:, :1], m.iqm) == (pytest.approx(float(m.iqm(scores[:, :1]))),) * 2  # one seed: no width


def contests(problems=5, step_cost=0.5):
    return [
        m.PairedRuns(
            f"problem {i}", 2.0, noisy_run("ours", i, level=0.1 * (i + 1)), noisy_run("ref", 50 + i), step_cost
        )
        for i in range(problems)
    ]


ALL = {
    "speedup": m.StepSpeedup,
    "wall": m.WallClockSpeedup,
    "normalised": m.NormalisedLoss,
    "ratio": m.LossRatio,
    "valid": lambda: m.LossRatio("best_valid"),
    "wins": lambda: m.WinRate("valid"),
    "diverged": m.DivergenceRate,
    "regret": m.WorstRegret,
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_metrics_are_statistics_of_scores_in_any_order(make):
    metric, other = make(), make()
    for contest in contests():
        metric.update(contest)
    for contest in reversed(contests()):
        other.update(contest)
    found = metric.compute()
    assert found == other.compute()
    scores = torch.stack([metric.score(contest) for contest in contests()])
    for name, statistic in metric.statistics.items():
        assert float(found[name]) == pytest.approx(float(statistic(scores)), rel=1e-12)
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    again = pickle.loads(pickle.dumps(metric))
    assert again.compute() == found
    metric.reset()
    with pytest.raises(RuntimeError, match="has no problem"), pytest.warns(UserWarning, match="before the"):
        metric.compute()


def test_wall_clock_speedup_is_the_speedup_times_the_cost_of_a_step():
    steps, seconds = m.StepSpeedup(), m.WallClockSpeedup()
    for contest in contests(step_cost=0.25):
        steps.update(contest)
        seconds.update(contest)
    assert float(seconds.compute()["iqm"]) == pytest.approx(0.25 * float(steps.compute()["iqm"]))
    with pytest.raises(ValueError, match="no step_cost"):
        seconds.update(contests(step_cost=NAN)[0])


def test_a_collection_and_plots():
    collection = MetricCollection({"speedup": m.StepSpeedup(), "wins": m.WinRate()})
    for contest in contests():
        collection.update(contest)
    assert {key for key in collection.compute() if "iqm" in key} == {"iqm", "iqm_low", "iqm_high"}
    import matplotlib as mpl

    mpl.use("Agg")
    metric = collection["speedup"]
    figure, axes = metric.plot()
    assert axes.get_title() == "StepSpeedup"
    drawn = [float(line.get_ydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"]
    assert drawn == [float(metric.compute()["iqm"]), float(metric.compute()["median"])]
    figure.clear()
    same = figure.subplots()
    assert metric.plot([metric.compute()] * 3, ax=same) == (figure, same)


def test_what_is_refused():
    metric = m.WinRate()
    for _ in range(2):
        metric.update(contests()[0])
    metric.update(contests()[1])
    with pytest.raises(RuntimeError, match="give each problem once"):
        metric.compute()
    with pytest.raises(ValueError, match="the horizon of a is 250, but the horizon of b is 300"):
        m.PairedRuns("p", 1.0, noisy_run("a", 0), noisy_run("b", 0, horizon=300))
    with pytest.raises(ValueError, match="the number of seeds of a is 3, but the number of seeds of b is"):
        m.PairedRuns("p", 1.0, noisy_run("a", 0), noisy_run("b", 0, seeds=2))
    with pytest.raises(ValueError, match="loss scale"):
        m.PairedRuns("p", NAN, noisy_run("a", 0), noisy_run("b", 0))
    with pytest.raises(ValueError, match="split must be"):
        m.LossRatio("test")
