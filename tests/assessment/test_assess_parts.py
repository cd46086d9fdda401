"""The parts of an assessment beside closed forms and hand-counted examples."""

import html
import math
import re

import pytest
import torch
from assessed import Model
from torch import nn

from lightning_lopt import load_rule
from lightning_lopt.assessment.assessment_html import assessment_html
from lightning_lopt.assessment.budget import Deadline
from lightning_lopt.assessment.coverage import _LAYERS, gaps, meta_training_of
from lightning_lopt.assessment.ladder import SWEEPS, PilotSeconds, first_level, next_horizon
from lightning_lopt.assessment.module_step_cost import module_step_cost
from lightning_lopt.assessment.other_batches import batches_for
from lightning_lopt.assessment.outlook import level_log_ratio, outlook
from lightning_lopt.assessment.pilot_task import PilotTask, regrouped
from lightning_lopt.assessment.pilots import DEFAULT, Level
from lightning_lopt.assessment.same_time import LongerRuns, in_the_same_time
from lightning_lopt.assessment.verdict import CARE, DONT, USE, judge
from lightning_lopt.evaluation.metrics import FLOOR
from lightning_lopt.tasks.base import MissingSplitError
from lightning_lopt.tasks.lightning_batches import NotStackableError, StackedBatches
from lightning_lopt.tasks.lightning_module import TrainingStep
from lightning_lopt.tasks.mixtures import FAMILIES


def level(horizon, ratio, spread=0.0):
    """A level on which the rule's loss is exp(ratio) times AdamW's, floors included."""
    adamw = torch.tensor([0.5, 0.5, 0.5])
    rule = (adamw + FLOOR) * torch.exp(torch.tensor([ratio - spread, ratio, ratio + spread])) - FLOOR
    found = {"train": rule, "valid": rule}
    return Level(horizon, {s: torch.ones(3) for s in found}, found, {DEFAULT: dict.fromkeys(found, adamw)}, 1.0, 0.0)


@pytest.mark.parametrize("shrink", [0.3, 0.6])
def test_a_geometric_approach_is_followed_to_where_it_goes(shrink):
    """y = c + a r^k over doublings k: the limit of three points is c."""
    levels = [level(10 * 2**k, 0.1 + 0.4 * shrink**k) for k in range(3)]
    for doublings in (1, 3, 8):
        seen = outlook(levels, "valid", 40 * 2**doublings, gaps=0)
        assert seen.expected == pytest.approx(0.1 + 0.4 * shrink ** (2 + doublings), abs=0.01)
        assert seen.doublings == doublings


def test_uncertainty_grows_with_distance_gaps_and_noise():
    levels = [level(10 * 2**k, -0.2) for k in range(3)]
    near, far = (outlook(levels, "train", steps, gaps=0).uncertainty for steps in (80, 640))
    assert (near, far) == (pytest.approx(0.03, abs=1e-4), pytest.approx(0.12, abs=1e-4))
    assert outlook(levels, "train", 640, gaps=2).uncertainty == pytest.approx(0.28, abs=1e-4)
    assert outlook([level(40, -0.2)], "train", 640, gaps=0).uncertainty == pytest.approx(0.8, abs=1e-4)
    noisy = outlook([level(10, 0.0), level(20, 0.0), level(40, 0.0, spread=0.3)], "train", 40, gaps=0)
    assert noisy.uncertainty == pytest.approx(2 * 0.3 / math.sqrt(3), abs=1e-4)


def test_memorising_counts_in_validation_alone():
    levels, matched = [level(10 * 2**k, -0.5) for k in range(3)], level(40, 0.3)
    seen = outlook(levels, "valid", 400, gaps=0, matched=matched)
    assert seen.expected == pytest.approx(0.3, abs=1e-4)
    assert seen.uncertainty == pytest.approx(math.hypot(0.03 * math.log2(10), 0.4), abs=1e-4)
    assert outlook(levels, "train", 400, gaps=0, matched=matched).expected == pytest.approx(-0.5, abs=1e-4)
    assert outlook(levels, "valid", 400, gaps=0, matched=level(40, -0.9)).expected == pytest.approx(-0.5, abs=1e-4)


def test_log_ratio_of_losses_that_are_not_finite_or_negative():
    lost = level(10, 0.0)
    lost.rule["train"][:] = math.nan
    assert level_log_ratio(lost, "train").tolist() == pytest.approx([math.log(1.51 / 0.51)] * 3)
    start, rule, adamw = ({"train": torch.full((3,), value)} for value in (4.0, -1.0, -4.0))
    assert level_log_ratio(Level(10, start, rule, {DEFAULT: adamw}, 1.0, 0.0), "train").tolist() == [0.375] * 3


@pytest.mark.parametrize(
    ("ratio", "timed", "spread", "troubles", "pretrained", "verdict"),
    [
        (-0.5, -0.4, 0.0, [], None, USE),
        (-0.5, None, 0.0, [], None, CARE),
        (-0.5, 0.0, 0.3, [], None, CARE),
        (-0.5, 0.4, 0.1, [], None, DONT),
        (-0.5, -0.5, 0.0, ["the rule diverged"], None, DONT),
        (-0.1, -0.1, 0.3, [], None, CARE),
        (0.5, 0.5, 0.1, [], None, DONT),
        (-0.5, -0.5, 0.0, [], "a reason", CARE),
        (-0.1, -0.1, 0.3, [], "a reason", DONT),
    ],
)
def test_judgement(ratio, timed, spread, troubles, pretrained, verdict):
    views = {"train": outlook([level(40, ratio, spread)], "train", 40, gaps=0)}
    seconds = {} if timed is None else {"train": outlook([level(40, timed, spread)], "train", 40, gaps=0)}
    found, reasons = judge(
        views,
        views,
        in_the_same_time=seconds,
        troubles=troubles,
        hopeless=False,
        gaps=["a"],
        slowdown=1.5,
        pretrained=pretrained,
    )
    assert found == verdict
    assert reasons[-2] == "meta-training does not cover this: a"
    assert bool(pretrained) == any("looks pretrained (a reason)" in reason for reason in reasons)


@pytest.mark.parametrize(("horizons", "verdict"), [([5], CARE), ([5, 20], CARE), ([5, 10, 20], USE), ([160], USE)])
def test_a_slow_rule_needs_a_trend_or_the_planned_end(horizons, verdict):
    levels = [level(horizon, -2.0) for horizon in horizons]
    views = {"train": outlook(levels, "train", 160, gaps=0)}
    given = {"troubles": [], "hopeless": False, "gaps": [], "slowdown": 43.0}
    assert judge(views, views, in_the_same_time=views, **given)[0] == verdict
    shorter = {"train": outlook(levels[:-1] or [level(2, -2.0)], "train", 160, gaps=0)}
    assert judge(views, views, in_the_same_time=shorter, **given)[0] == CARE


def test_a_pretrained_module_without_a_pilot_is_refused():
    given = {"in_the_same_time": {}, "troubles": [], "hopeless": False, "gaps": [], "slowdown": 1.0}
    assert judge({}, {}, **given)[0] == CARE
    assert judge({}, {}, **given, pretrained="counted")[0] == DONT


def power_law(horizon, ratio=0.5, power=0.5):
    """A level where AdamW's loss is h^-power and the rule's is ``ratio`` times that."""
    adamw = torch.full((3,), float(horizon) ** -power)
    found = {"train": ratio * adamw}
    return Level(horizon, {"train": torch.ones(3)}, found, {DEFAULT: {"train": adamw}}, float(15 * horizon), 0.0)


@pytest.mark.parametrize("slowdown", [2.0, 3.7, 8.0])
def test_on_a_power_law_as_much_time_is_worth_a_power_of_the_slowdown(slowdown):
    levels = [power_law(horizon) for horizon in (10, 40, 160)]
    steps = math.ceil(160 * slowdown)
    longer = LongerRuns(160, steps, {DEFAULT: {"train": torch.full((3,), steps**-0.5)}})
    timed = in_the_same_time(levels, longer, slowdown)
    assert [found.horizon for found in timed] == [10, 40, 160]
    for found in timed:
        ratio = found.rule["train"] / found.adamw[0]["train"]
        torch.testing.assert_close(ratio, torch.full((3,), 0.5 * slowdown**0.5), rtol=1e-2, atol=0.0)


def test_without_longer_runs_only_what_was_seen_counts():
    levels = [power_law(horizon) for horizon in (10, 40, 160)]
    assert [found.horizon for found in in_the_same_time(levels, None, 4.0)] == [10, 40]
    assert in_the_same_time(levels, None, 142.0) == []
    assert in_the_same_time(levels, None, 1.0) == levels


def test_more_time_never_makes_adamw_worse():
    levels = [power_law(10), power_law(40)]
    longer = LongerRuns(40, 80, {DEFAULT: {"train": torch.ones(3)}})  # it memorised its data
    timed = in_the_same_time(levels, longer, 2.0)
    assert torch.equal(timed[1].adamw[0]["train"], levels[1].adamw[DEFAULT]["train"])


def test_levels_are_planned_as_many_as_there_is_time_for():
    cheap, dear = PilotSeconds(step=1.0, run=0.0), PilotSeconds(step=1.0, run=20.0)
    assert next_horizon(cheap, 50.0, 0, 4, 10, 1000) == 0  # 10 runs of 5 steps, and a reserve
    assert next_horizon(cheap, 63.0, 0, 4, 10, 1000) == 5
    assert next_horizon(dear, 400.0, 0, 4, 10, 1000) == 5  # measuring is dear, so there is one level
    assert first_level(dear, 100.0, 1000) == (SWEEPS[2], 5)
    assert first_level(dear, 20.0, 1000)[1] == 0


def test_regrouped_keeps_order_and_refuses_what_is_no_stack_of_examples():
    batches = [{"x": torch.arange(3 * i, 3 * i + 3), "name": "same"} for i in range(4)]
    six = regrouped(batches, 6)
    assert [batch["x"].tolist() for batch in six] == [[*range(6)], [*range(6, 12)]]
    assert [batch["x"].tolist() for batch in regrouped(batches, 5)] == [[*range(5)], [*range(5, 10)]]
    assert regrouped(batches, 13) is None
    assert regrouped([(torch.zeros(3), torch.zeros(2))], 2) is None
    assert regrouped([torch.zeros(3, 2), torch.zeros(3, 4)], 2) is None


def test_passes_are_those_of_the_plan():
    count = batches_for(50, total_steps=1000, length=200)
    assert 50 / count == 1000 / 200
    assert batches_for(50, total_steps=250, length=200) is None
    assert batches_for(50, total_steps=250, length=None) is None


def test_state_is_counted_in_bytes():
    """AdamW keeps two numbers for a parameter and one count for a tensor; this rule one momentum, and counts."""
    batch = (torch.randn(8, 6), torch.randn(8))
    cost = module_step_cost(TrainingStep(Model()), [batch], load_rule("base"), 10, lambda step: 0.0)
    assert cost.parameters == 7
    assert cost.adamw_bytes == pytest.approx((2 * 4 * 7 + 2 * 4) / 7)
    assert cost.learned_bytes >= 4
    assert min(cost.gradient, cost.learned, cost.adamw) > 0


class Sums(Model):
    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()


class Recurrent(Model):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 3)


def test_gaps_are_named():
    trained = {"horizons": [100, 1000], "batch_sizes": [8, 128], "largest_parameters": 100, "families": ["image_cnn"]}
    plan = {"total_steps": 1000, "batch_size": 64, "parameters": 1000}
    assert gaps(Model(), trained, **plan) == []
    far = gaps(Recurrent(), trained, total_steps=5000, batch_size=512, parameters=2000)
    assert [text.split(",")[0] for text in far] == [
        "5000 steps are planned",
        "batches have 512 examples",
        "the module has 2",
        "the module has recurrent layers",
    ]
    odd = {"horizons": "long", "batch_sizes": [1], "largest_parameters": True, "families": [3]}
    assert gaps(Recurrent(), odd, **plan) == gaps(Recurrent(), {}, **plan) == []


def test_layers_belong_to_families_that_exist():
    assert set().union(*(names for _, names in _LAYERS.values())) <= set(FAMILIES)


def test_base_records_what_its_card_says():
    recorded = meta_training_of("base")
    assert recorded["horizons"] == [100, 3000]
    assert recorded["batch_sizes"] == [4, 512]
    assert recorded["largest_parameters"] == 50_000
    assert meta_training_of(load_rule("base")) == {}


def test_a_deadline_is_counted_from_the_start():
    whole = Deadline(100.0, 40.0, "40s")
    assert whole.at(0.0) == 100.0
    assert whole.at(0.5) == 120.0
    assert whole.shortened(0.75).at(0.5) == 115.0


def test_what_a_task_lacks_is_an_error_of_its_own():
    batches = [torch.ones(2, 6), torch.ones(3, 6)]
    task = PilotTask(lambda: Sums(), StackedBatches(batches[:1], "first"))
    with pytest.raises(MissingSplitError, match="has no valid batches"):
        task.full_batch("valid")
    with pytest.raises(NotStackableError, match="there is no batch"):
        task.with_batches([], [])
    again, reason = task.with_batches(batches[:1], [torch.ones(2, 6), torch.ones(3, 6), "text"])
    assert "valid" not in again.data
    assert reason


@pytest.mark.parametrize(("verdict", "sign"), [(USE, "✔"), (CARE, "!"), (DONT, "✘")])
def test_a_notebook_shows_verdict_reasons_and_pilots(verdict, sign):
    """The verdict is a word and a sign, not a colour alone; texts of the user stay texts."""
    levels = [level(10, -0.5), level(40, 0.2)]
    shown = assessment_html(verdict, ["after <b> it rose", "slow"], "all\n<script>", levels)
    assert shown.index(f"{sign} {html.escape(verdict.capitalize())}.") < shown.index(
        "<li>After &lt;b&gt; it rose.</li>"
    )
    assert "<script>" not in shown
    rows = re.findall(r"<tr>(.*?)</tr>", shown)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    assert cells[0] == ["steps", "rule", "AdamW, best rate", "AdamW, default rate"]
    assert cells[1:] == [["10", "0.2993", "0.5", "0.5"], ["40", "0.6129", "0.5", "0.5"]]
    assert "<table>" not in assessment_html(verdict, [], "all", [])
