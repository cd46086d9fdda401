"""Steps that take turns, and the mean over a run that follows from the first ones."""

import time

import pytest

from lightning_lopt.evaluation.step_cost import mean_of_run, time_in_turns


def test_optimizers_take_turns_each_with_the_gradient_of_its_step():
    calls = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    of_gradient, of_steps = time_in_turns(
        lambda: calls.append("gradient"),
        steps,
        4,
        time.perf_counter,
        prepare=lambda: calls.append("prepare"),
        put_back=lambda: calls.append("."),
    )
    assert len(of_gradient) == 4
    assert {name: len(seconds) for name, seconds in of_steps.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(second >= 0 for seconds in of_steps.values() for second in seconds)
    turns = [calls[at : at + 8] for at in range(0, len(calls), 8)]
    assert all(turn[:2] == ["prepare", "gradient"] for turn in turns)
    assert ["".join(turn[2:]) for turn in turns] == [".a.b.c", ".b.c.a", ".c.a.b", ".a.b.c"]


def test_a_measurement_ends_where_it_has_enough():
    clock = iter(range(100))
    of_gradient, of_steps = time_in_turns(
        lambda: None,
        {"a": lambda: None},
        10,
        lambda: next(clock),
        is_enough=lambda of_gradient, of_steps: sum(of_gradient) + sum(of_steps["a"]) >= 6,
    )
    assert (of_gradient, of_steps) == ([1] * 3, {"a": [1] * 3})


@pytest.mark.parametrize(
    ("horizon", "mean"),
    [(10, 5.0), (20, 5.0), (30, 4.0), (40, 3.5), (2040, (20 * 5.0 + 20 * 2.0 + 2000 * 2.0) / 2040)],
)
def test_the_beginning_counts_as_often_as_it_occurs(horizon, mean):
    later = [1.0, 1.0, 4.0] * 3
    later[0] = 100.0  # something else kept the machine busy
    assert mean_of_run([9.0] + [5.0] * 19 + [2.0] * 20 + later, horizon, period=3) == pytest.approx(mean)
