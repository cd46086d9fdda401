import math

import pytest

from lightning_lopt.meta import Horizons


def draws(horizons, outer_step=10**9, count=2000):
    return [horizons.draw(seed, outer_step) for seed in range(count)]


def test_shorthands():
    assert Horizons.of(50) == Horizons(50)
    assert Horizons.of((100, 1000)) == Horizons(100, 1000)
    assert Horizons.of(Horizons(3, 9, curriculum=2)) == Horizons(3, 9, curriculum=2)


def test_constant():
    assert set(draws(Horizons(50), count=20)) == {50}


def test_log_uniform():
    values = sorted(draws(Horizons(100, 20_000)))
    assert values[0] < 103
    assert 19_400 < values[-1] <= 20_000
    assert values[1000] == pytest.approx(math.sqrt(100 * 20_000), rel=0.15)  # the median is the geometric mean


def test_curriculum_grows_by_the_same_factor():
    horizons = Horizons(100, 10_000, curriculum=200)
    assert [horizons.longest_at(step) for step in (0, 100, 200, 10**6)] == [100, pytest.approx(1000), 10_000, 10_000]
    assert set(draws(horizons, 0, 20)) == {100}
    assert 900 < max(draws(horizons, 100)) <= 1000
    assert draws(horizons, 200) == draws(Horizons(100, 10_000))


def test_first_runs_are_out_of_phase():
    first = [Horizons(1000).draw(seed, 0, first_of=(seed, 10)) for seed in range(10)]
    assert all(100 * group <= value <= 100 * (group + 1) for group, value in enumerate(first))
    in_step = Horizons(1000, staggered=False)
    assert {in_step.draw(seed, 0, first_of=(seed, 10)) for seed in range(10)} == {1000}


@pytest.mark.parametrize(("values", "sentence"), [((0,), "shortest"), ((5, 4), "longest"), ((5, 9, -1), "curriculum")])
def test_bad_settings_get_one_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Horizons(*values)
