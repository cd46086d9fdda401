"""The page on adding an estimator: its example, as it stands there, estimates what it should."""

import re
from pathlib import Path

import pytest
import torch
from test_estimator_bias import HORIZON, SETTINGS, bowl, run_averages, smoothed
from test_estimators import test_a_diverging_run_counts_as_the_cap as counts_as_the_cap
from test_estimators import test_a_diverging_run_takes_no_part_and_is_counted as takes_no_part

from lightning_lopt import FullES

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "estimator.md"


@pytest.fixture(scope="module")
def names():
    found = {}
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)[0]
    exec(compile(code, str(PAGE), "exec"), found)
    return found


def test_the_mean_is_what_it_should_be(names):
    class WholeRuns(names["OrthogonalES"], FullES):  # run_averages gives a whole run the weight 1
        pass

    averages = run_averages(WholeRuns(**SETTINGS), bowl(), HORIZON, draws=60)
    standard_error = averages.std(ddof=1) / len(averages) ** 0.5
    assert abs(averages.mean() - smoothed(persistent=False)) < 4 * standard_error


def test_perturbations_are_orthogonal_and_keep_their_norm(names):
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    made = names["orthogonal"](rows)
    torch.testing.assert_close(made @ made.mT, torch.diag(rows.square().sum(1)), rtol=1e-5, atol=1e-5)


def test_a_diverging_run_counts_as_the_cap(names):
    counts_as_the_cap(names["OrthogonalES"])


def test_a_diverging_run_takes_no_part(names):
    takes_no_part(names["OrthogonalES"])
