"""The report: its numbers against a recomputation with numpy from results.json, its page, its pictures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_runs import made_results, noisy_run

from lightning_lopt.evaluation.metrics import DivergenceRate
from lightning_lopt.evaluation.report import write_report
from lightning_lopt.evaluation.report.numbers import (
    BEST,
    REPORTED,
    Number,
    ReportedMetric,
    best_baseline,
    groups,
    numbers,
)
from lightning_lopt.evaluation.report.page import STYLE
from lightning_lopt.evaluation.report.tables_and_pictures import finals
from lightning_lopt.evaluation.report.verdict import defeats, summary, verdicts
from lightning_lopt.evaluation.results import Results, RuleRecord


class Page(HTMLParser):
    """Tables as lists of rows, tags with attributes, and the text of elements."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.texts, self.open = [], [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_report(made_results(), path)
    return path


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "results.json").read_text())


def array(values):
    return np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)


def level(losses, scale):
    relative = np.array([np.nan if value is None else value for value in losses], dtype=float) / scale
    return np.clip(np.where(np.isfinite(relative), relative, 1.5), 0, 1.5)


def smoothed(train, scale):
    levels = level(train, scale)
    return [max(np.mean(levels[max(0, end - 5) : end]), 0.01) for end in range(1, len(levels) + 1)]


def speedup(ours, reference, scale, horizon):
    """For one seed, in a plain loop."""
    ends = [horizon * (window + 1) // len(ours) for window in range(len(ours))]
    mine, other = smoothed(ours, scale), smoothed(reference, scale)

    def first(curve, target):
        return next(end for end, value in zip(ends, curve, strict=True) if value <= target + 1e-9)

    if mine[-1] < other[-1] - 1e-9:
        return horizon / first(mine, other[-1])
    if mine[-1] > other[-1] + 1e-9:
        return first(other, mine[-1]) / horizon
    return first(other, mine[-1]) / first(mine, mine[-1])


def iqm(scores):
    ordered = np.sort(np.ravel(scores))
    cut = len(ordered) // 4
    return np.mean(ordered[cut : len(ordered) - cut])


def seen(problem):
    return problem["family"] in ("image_mlp", "image_vit")


GROUPS = {
    "all problems": lambda problem: True,
    "seen families": seen,
    "unseen families": lambda problem: not seen(problem),
    "seen data": lambda problem: problem["data"] == "digits",
    "unseen data": lambda problem: problem["data"] not in ("digits", ""),
    "longer than trained on": lambda problem: problem["horizon"] > 600,
    "the rule was chosen on": lambda problem: problem["name"] == "problem 1",
}


def ends(run, split):
    if split == "train":
        return [np.inf if value is None else value for value in run["final_train"]]
    valid = np.where(np.isfinite(array(run["valid"])), array(run["valid"]), np.inf)
    return valid.min(0) if split == "best_valid" else valid[-1]


def reference(content, runs, against, split):
    names = content["against"] if against == BEST else [against]
    return runs[min(names, key=lambda name: np.median(ends(runs[name], split)))]


def recomputed(content, rule, against, group):
    """Every metric of the report, from the file's content alone."""
    scores = {}
    for problem in filter(GROUPS[group], content["problems"]):
        runs, scale = problem["measurements"], problem["loss_scale"]

        ours, other = runs[rule], reference(content, runs, against, "train")
        pairs = zip(array(ours["train"]).T, array(other["train"]).T, strict=True)
        speeds = [speedup(mine, theirs, scale, problem["horizon"]) for mine, theirs in pairs]
        name = next(key for key, run in runs.items() if run is other)
        seconds = problem["step_seconds"]
        cost = (problem["gradient_seconds"] + seconds[name]) / (problem["gradient_seconds"] + seconds[rule])
        row = {"speedup": speeds, "speedup_median": speeds, "wall_clock": np.array(speeds) * cost}
        for split in ("train", "valid", "best_valid"):
            mine, theirs = (level(ends(run, split), scale) for run in (ours, reference(content, runs, against, split)))
            row[f"{split}_ratio"] = (theirs + 0.01) / (mine + 0.01)
            row[f"{split}_wins"] = (np.sign(np.maximum(theirs, 0.01) - np.maximum(mine, 0.01)) + 1) / 2
            row[f"{split}_regret"] = [np.median((mine + 0.01) / (theirs + 0.01))]
            row[f"{split}_normalised"] = (mine - np.median(theirs)) / max(1 - np.median(theirs), 0.01)
        windows = array(ours["train"])
        row["diverged"] = [
            not np.isfinite(windows[:, seed]).all() or not level([final], scale)[0] < 1.5
            for seed, final in enumerate(ours["final_train"])
        ]
        for key, values in row.items():
            scores.setdefault(key, []).append(values)
    kinds = {"speedup_median": np.median, "diverged": np.mean}
    for split in ("train", "valid"):
        kinds |= {f"{split}_wins": np.mean, f"{split}_regret": lambda values: max(1, np.max(values))}
    return {key: kinds.get(key, iqm)(np.array(values, dtype=float)) for key, values in scores.items()}


RECOMPUTED = {
    *("speedup", "speedup_median", "wall_clock", "best_valid_ratio", "diverged"),
    *(f"{split}_{kind}" for split in ("train", "valid") for kind in ("ratio", "wins", "regret", "normalised")),
}
"""Metrics that this file computes by itself; others may be reported, too."""


def numbers_of(page):
    (block,) = page.texts["script"]
    return json.loads(block)


def test_every_number_equals_a_recomputation_from_the_file(page, content):
    """Up to float32, in which measurements are read."""
    found = [number for number in numbers_of(page) if number["metric"] in RECOMPUTED]
    expected = {}
    for number in found:
        key = (number["rule"], number["against"], number["group"])
        if key not in expected:
            expected[key] = recomputed(content, *key)
        assert number["value"] == pytest.approx(expected[key][number["metric"]], rel=2e-6), (key, number["metric"])
        assert number["low"] <= number["value"] <= number["high"]
        assert number["problems"] == len(list(filter(GROUPS[key[2]], content["problems"])))
    assert len(found) == 2 * 3 * len(GROUPS) * len(RECOMPUTED)
    assert len({(key[0], key[1]) for key in expected}) == 2 * 3


def test_tables_show_these_numbers(page):
    found = {
        (number["rule"], number["against"], number["group"], number["metric"]): number for number in numbers_of(page)
    }
    labels = {"tuned AdamW": "adamw", "tuned Muon": "muon", BEST: BEST}
    heads = {"speed-up in steps": "speedup", "validation loss, ratio": "valid_ratio", "wins in training": "train_wins"}
    shown = 0
    for table in page.tables:
        for row in table[1:] if "against" in table[0] else ():
            rule, problems, against = row[:3]
            group = problems.rpartition(" (")[0]
            for head, cell in zip(table[0], row, strict=True):
                if head in heads:
                    number = found[rule, labels[against], group, heads[head]]
                    percent = 100 if cell.split()[1] == "%" else 1
                    digits = 2 if percent == 1 else 0
                    low, high = (float(bound) for bound in cell[cell.index("[") + 1 : -1].split(","))
                    values = [float(cell.split()[0]), low, high]
                    wanted = [round(percent * number[key], digits) for key in ("value", "low", "high")]
                    assert values == pytest.approx(wanted, abs=1e-9)
                    shown += 1
    assert shown == 2 * 3 * (3 + 2 * len(GROUPS))


def test_final_losses_and_where_it_loses(page, content):
    (table,) = [table for table in page.tables if table[0][0] == "problem" and " / " in table[1][1]]
    assert table[0] == ["problem", "ours", "other", "tuned AdamW", "tuned Muon"]
    for row, problem in zip(table[1:], content["problems"], strict=True):
        assert row[0] == problem["name"]
        run = problem["measurements"]["ours"]
        wanted = [np.median(run["final_train"]), np.median(run["valid"][-1])]
        assert [float(part) for part in row[1].split(" / ")] == pytest.approx(wanted, rel=5e-3)
    (table,) = [table for table in page.tables if "factor" in table[0]]
    behind = 0
    for problem in content["problems"]:
        for rule in ("ours", "other"):
            for against in ("adamw", "muon"):
                for split in ("training", "validation"):
                    ours, theirs = (
                        level(
                            problem["measurements"][name]["final_train"]
                            if split == "training"
                            else problem["measurements"][name]["valid"][-1],
                            2.0,
                        )
                        + 0.01
                        for name in (rule, against)
                    )
                    factor = np.exp(np.median(np.log(ours / theirs)))
                    rows = [
                        row
                        for row in table[1:]
                        if row[:4]
                        == [rule, problem["name"], split, {"adamw": "tuned AdamW", "muon": "tuned Muon"}[against]]
                    ]
                    assert len(rows) == (factor > 1.001)
                    if rows:
                        behind += 1
                        assert float(rows[0][4]) == pytest.approx(factor, abs=6e-4)
                        assert rows[0][7] == f"{(ours > theirs).sum()} of 3"
    assert behind == len(table) - 1 > 3
    factors = [float(row[4]) for row in table[1:]]
    assert factors == sorted(factors, reverse=True)


def test_log_ratios_by_hand(page, content):
    (table,) = [table for table in page.tables if table[0] == ["rule", "against", "training", "validation"]]
    assert [row[:2] for row in table[1:4]] == [["ours", "other"], ["ours", "tuned AdamW"], ["ours", "tuned Muon"]]
    assert len(table) == 7
    ratios = []
    for problem in content["problems"]:
        ours, other = (level(problem["measurements"][name]["final_train"], 2.0) + 0.01 for name in ("ours", "other"))
        ratios.append(np.median(np.log(ours / other)))
    lower = sum(ratio < 0 for ratio in ratios)
    assert table[1][2] == f"lower on {lower} of 4, mean log-ratio {np.mean(ratios):+.3f}"


def test_untuned_against_untuned_by_hand(tmp_path, page):
    """Muon's runs as if nobody had tuned them: the table has it alone; where all are tuned, there is no table."""
    made = made_results()
    problems = tuple(
        replace(
            problem,
            measurements=problem.measurements | {"muon": replace(problem.measurements["muon"], learning_rate=None)},
        )
        for problem in made.problems
    )
    write_report(replace(made, problems=problems), tmp_path)
    shown = Page((tmp_path / "report.html").read_text())
    assert "Untuned against untuned" in shown.texts["h2"]
    assert "Untuned against untuned" not in page.texts["h2"]
    content = json.loads((tmp_path / "results.json").read_text())
    rows = []
    for rule in ("ours", "other"):
        cells = []
        for split in ("train", "valid"):
            ratios = [
                (level(ends(problem["measurements"][rule], split), 2.0) + 0.01)
                / (level(ends(problem["measurements"]["muon"], split), 2.0) + 0.01)
                for problem in content["problems"]
            ]
            cells.append(f"{sum(np.median(ratio) < 1 for ratio in ratios)} of 4")
        rows.append([rule, "tuned Muon", *cells])
    (table,) = [table for table in shown.tables if "lower in training" in table[0]]
    assert table == [["rule", "against", "lower in training", "lower in validation"], *rows]
    assert len({row[2] for row in rows}) == 2  # it tells rules apart


def test_the_page_is_whole_and_needs_nothing_else(folder, page):
    assert page.open == []
    text = (folder / "report.html").read_text()
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 5
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in images)
    assert not any(tag in ("link", "iframe") for tag, _ in page.tags)
    assert all(attrs["href"].startswith("#") for tag, attrs in page.tags if tag == "a")
    assert "http://" not in text
    assert "https://" not in text
    assert ("meta", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in [
        (tag, attrs.get("content")) for tag, attrs in page.tags
    ]
    headings = [text.strip() for text in page.texts["h2"]]
    for wanted in ("Summary", "Seen and unseen", "Where rules lose", "Curves", "Environment and command"):
        assert wanted in headings
    assert page.texts["pre"] == ["lightning-lopt evaluate ours"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"curves_0{index}.png" for index in range(1, 5)), "profile.png", "report.html", "results.json"]
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in names if name.endswith(".png"))


def test_the_page_begins_with_verdict_and_chart_then_contents(folder, page):
    """Everything is checked against results.json."""
    text = (folder / "report.html").read_text()
    order = [text.index(part) for part in ('<p class="verdict', '<div class="chart">', "<nav", '<h2 id="section-1">')]
    assert order == sorted(order)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    sections = [f"#{attrs['id']}" for tag, attrs in page.tags if tag == "h2"]
    assert links == sections == [f"#section-{number}" for number in range(1, len(page.texts["h2"]) + 1)]
    assert page.texts["a"] == page.texts["h2"]


def test_verdicts_by_hand(page, content):
    said = [paragraph for paragraph in page.texts["p"] if paragraph[:2] in ("✔ ", "≈ ", "✘ ")]
    labels = {"adamw": "tuned AdamW", "muon": "tuned Muon"}
    found = {
        (n["rule"], n["against"], n["metric"]): n["value"] for n in numbers_of(page) if n["group"] == "all problems"
    }
    wanted = []
    for rule in ("ours", "other"):
        for against in ("adamw", "muon"):
            lower = [
                sum(hand_ratio(problem, rule, against, split) < 1 for problem in content["problems"])
                for split in ("train", "valid")
            ]
            sign = "✘" if max(lower) < 2 else "≈"
            steps, seconds = found[rule, against, "speedup"], found[rule, against, "wall_clock"]
            wanted.append(
                (
                    sign,
                    f"{lower[0]} of 4 problems in training and on {lower[1]} of 4 in validation",
                    f"{steps:.2f} in steps, {seconds:.2f} in seconds",
                )
            )
            assert f"{labels[against]}" in said[len(wanted) - 1]
    assert len(said) == 4
    for sentence, (sign, counts, speeds) in zip(said, wanted, strict=True):
        assert sentence.startswith(sign)
        assert counts in sentence
        assert speeds in sentence
        assert ("1 run of the rule diverged." in sentence) == sentence.startswith(("✘ other ", "≈ other "))
    assert {sentence[0] for sentence in said} == {"✘", "≈"}


def hand_ratio(problem, rule, against, split):
    ours, theirs = (level(ends(problem["measurements"][name], split), 2.0) + 0.01 for name in (rule, against))
    return np.median(ours / theirs)


@pytest.mark.parametrize(
    ("level", "seconds", "standing", "words"),
    [
        (
            1e-3,
            0.5,
            "mixed",
            "is ahead of tuned AdamW in as many steps, but behind it in seconds: it ends lower on 4",
        ),
        (1e-3, 1.5, "ahead", "is ahead of tuned AdamW: it ends lower on 4 of 4"),
        (1e-3, None, "ahead", "is ahead of tuned AdamW: it ends lower on 4 of 4"),
        (1.9, 1.5, "behind", "is behind tuned AdamW: it ends lower on 0 of 4"),
    ],
)
def test_a_win_in_steps_that_is_none_by_the_clock_is_no_win(level, seconds, standing, words):
    results = made_results()
    changed = tuple(
        replace(one, measurements=one.measurements | {"ours": noisy_run("ours", 1, level=level, horizon=one.horizon)})
        for one in results.problems
    )
    results = replace(results, rules={"ours": results.rules["ours"]}, problems=changed)
    metrics = {"speedup": 2.0} | ({} if seconds is None else {"wall_clock": seconds})
    found = [
        Number("ours", against, "all problems", metric, 4, value, value, value)
        for against in results.against
        for metric, value in metrics.items()
    ]
    first = verdicts(results, found)[0]
    assert first.standing == standing
    assert first.text.startswith(f"ours {words}")
    assert first.text.endswith("2.00 in steps." if seconds is None else f"2.00 in steps, {seconds:.2f} in seconds.")


def test_the_chart_shows_each_ratio_with_a_sign_and_a_word(folder, content):
    """Colours never stand alone; wins and losses are drawn to different sides, and losses are hatched."""
    text = (folder / "report.html").read_text()
    assert text.count('<div class="chart">') == 4
    chart = text.split('<div class="chart">')[1].split("<details>")[0]
    form = (
        r'<div class="split"><div>(\w+)</div><div class="left">(.*?)</div><div>(.*?)</div>'
        r'<div class="result (\w+)">(.*?)</div>'
    )
    rows = [
        (name, re.findall(form, bars))
        for name, bars in re.findall(r'<div class="name">(.*?)</div>(.*?</div></div>)</div>', chart, re.S)
    ]
    assert len(rows) == 4
    seen = set()
    for name, bars in rows:
        (problem,) = [problem for problem in content["problems"] if problem["name"] == name]
        assert [bar[0] for bar in bars] == ["training", "validation"]
        for (_, left, right, kind, words), split in zip(bars, ("train", "valid"), strict=True):
            ratio = hand_ratio(problem, "ours", "adamw", split)
            wanted = ("win", "✔", "lower") if ratio < 1 else ("loss", "✘", "higher")
            assert (kind, *words.split(" ")[::2]) == (wanted[0], wanted[1], wanted[2])
            assert float(words.split(" ")[1].rstrip(",")) == pytest.approx(ratio, abs=0.006)
            bar = left if ratio < 1 else right
            assert f'class="bar {kind}"' in bar
            width = min(abs(np.log(ratio)) / np.log(4), 1)
            assert float(re.search(r"width: (\d+)%", bar)[1]) == pytest.approx(100 * width, abs=1)
            assert (right if ratio < 1 else left) == ""
            seen.add(kind)
    assert seen == {"win", "loss"}
    assert "i.bar.loss { background: repeating-linear-gradient(" in STYLE


def test_cells_of_wins_and_losses_are_marked(folder):
    text = (folder / "report.html").read_text()
    table = text[text.index("<th>ours over tuned AdamW</th>") :].split("</table>")[0]
    cells = re.findall(r'<td>([\d.]+) \[[^]]*\]<span class="(\w+)" title="(\w+)"> (.)</span></td>', table)
    assert len(cells) == 16
    for value, kind, word, sign in cells:
        assert (kind, word, sign) == (("win", "faster", "✔") if float(value) > 1 else ("loss", "slower", "✘"))
    assert {kind for _, kind, _, _ in cells} == {"win", "loss"}


def test_it_is_made_for_narrow_windows(folder):
    """Nothing but what scrolls by itself is wider than the window; words that are too long are broken."""
    text = (folder / "report.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media (max-width: 600px)" in text
    assert "div.wide { overflow-x: auto; }" in text
    for tag in ("<table>", "<img "):
        assert text.count(tag) == text.count(f'<div class="wide">{tag}')
    narrow = STYLE.split("@media (max-width: 600px) {")[1]
    assert "div.row { grid-template-columns: 1fr; }" in narrow


def test_the_summary_says_what_the_numbers_say(page):
    found = {
        (number["rule"], number["against"], number["group"], number["metric"]): number["value"]
        for number in numbers_of(page)
    }
    paragraphs = " ".join(page.texts["p"])
    speed = found["ours", "adamw", "all problems", "speedup"]
    assert f"ours against tuned AdamW, 4 problems with 3 seeds: a speed-up of {speed:.2f} in steps" in paragraphs
    unseen = found["ours", BEST, "unseen families", "speedup"]
    assert f"unseen families (2): speed-up {unseen:.2f}" in paragraphs
    assert "was chosen by its results on problem 1," in paragraphs
    assert "1 of 12 runs diverged" in paragraphs
    assert "other is behind tuned AdamW, tuned Muon in" in paragraphs


def test_hostile_names_stay_texts(tmp_path):
    evil = "<script>alert(1)</script>$\\frac{\x1b[31m\u202e\ud800|&amp;\"'"
    results = made_results(ours=evil, problem=evil.replace("{", "{{") + " {}", command=f"run {evil}\n</pre><img src=x>")
    record = RuleRecord(evil, {evil: [evil]}, evil, 1, {"families": [evil], "data": [evil]}, evil)
    results = replace(results, rules=dict.fromkeys(results.rules, record), environment={evil: evil}, suite=evil)
    write_report(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("img") == 5
    assert not {"\x1b", "\u202e"} & {*(tmp_path / "report.html").read_text()}
    shown = "<script>alert(1)</script>$\\frac{?[31m??|&amp;\"'"
    assert any(shown in cell for table in page.tables for row in table for cell in row)
    assert numbers_of(page)[0]["rule"] == evil
    markdown = finals(results.problems, [evil]).markdown().splitlines()
    assert {line.replace("\\|", "").count("|") for line in markdown} == {3}


def test_a_rule_that_loses_nowhere_and_says_nothing_of_itself(tmp_path):
    results = made_results(2, trained_on={})
    best = tuple(
        replace(
            problem, measurements=problem.measurements | {"ours": noisy_run("ours", 1, level=1e-3, horizon=250 * n)}
        )
        for n, problem in enumerate(results.problems, 1)
    )
    results = replace(results, rules={"ours": results.rules["ours"]}, problems=best)
    assert defeats(results) == []
    write_report(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "ours is behind tuned AdamW, tuned Muon in none of 8 comparisons" in " ".join(page.texts["p"])
    assert "No rule loses on any problem." in page.texts["p"]
    assert "has no record of its meta-training" in " ".join(page.texts["p"])
    assert {number["group"] for number in numbers_of(page)} == {"all problems"}


@pytest.mark.parametrize(
    ("regrets", "words"),
    [
        ((1.0, 1.0), "it ends higher on no problem. "),
        ((1.0, 1.3), "on its worst problem it ends 1.30 times as high in validation; in training it ends higher on no"),
        ((1.002, 1.0), "on its worst problem it ends 1.002 times as high in training; in validation it ends higher"),
        ((2.0, 1.5), "on its worst problem it ends 2.00 (training) and 1.50 (validation) times as high. "),
    ],
)
def test_a_rule_that_is_never_higher_has_no_worst_problem(regrets, words):
    results = made_results(2)
    values = dict.fromkeys(("speedup", "train_wins", "valid_wins", "valid_ratio"), 1.0)
    values |= dict(zip(("train_regret", "valid_regret"), regrets, strict=True))
    found = [
        Number(rule, against, group, metric, 2, value, value, value)
        for rule in results.rules
        for against in (*results.against, BEST)
        for group in GROUPS
        for metric, value in values.items()
    ]
    assert f"(ties count half); {words}" in summary(results, found)[0]


def test_one_of_a_kind_is_in_the_singular(tmp_path):
    results = made_results(1)
    first = {
        name: replace(run, train=run.train[:, :1], valid=run.valid[:, :1], final_train=run.final_train[:1], metrics={})
        for name, run in results.problems[0].measurements.items()
    }
    problem = replace(results.problems[0], measurements=first)
    text = write_report(replace(results, problems=(problem,)), tmp_path).read_text(encoding="utf-8")
    assert "1 problem, 1 seed each." in text
    assert "1 problem with 1 seed:" in text
    assert not re.search(r"\b1 (problems|seeds|runs)\b", text)


def test_best_baseline_is_chosen_by_the_split_in_question():
    problem = made_results(1).problems[0]
    runs = problem.measurements
    runs["muon"].valid[-1] = 9.0
    assert best_baseline(problem, ("adamw", "muon"), "train") == "muon"
    assert best_baseline(problem, ("adamw", "muon"), "valid") == "adamw"


def test_groups_follow_what_the_rule_says():
    problems = made_results().problems
    named = {group: [one.name[-1] for one in members] for group, members in groups(problems, {"data": []}).items()}
    assert named == {"all problems": list("0123"), "unseen data": list("012")}
    assert list(groups(problems, {})) == ["all problems"]


def test_a_report_is_remade_from_its_file(folder, tmp_path):
    write_report(Results.load(folder / "results.json"), tmp_path)
    for name in ("results.json", "report.html"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_numbers_of_a_metric_that_these_tests_do_not_know_are_left_to_its_own_test(monkeypatch, tmp_path):
    monkeypatch.setitem(REPORTED, "made_up", replace(REPORTED["diverged"], label="made up"))
    write_report(made_results(), tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "made_up" in {number["metric"] for number in numbers_of(page)}
    content = json.loads((tmp_path / "results.json").read_text())
    test_every_number_equals_a_recomputation_from_the_file(page, content)
    test_tables_show_these_numbers(page)


def test_a_new_metric_needs_one_entry(monkeypatch, tmp_path):
    """Its label, format, definition and condition reach the page from there, and each table that it names."""
    seen = ReportedMetric("share of defeats", lambda: DivergenceRate(), "mean", "Defeats: made up.", ("worst cases",))
    hidden = replace(seen, label="without costs", needs_step_cost=True, percent=True)
    monkeypatch.setitem(REPORTED, "made_up", seen)
    monkeypatch.setitem(REPORTED, "without_costs", hidden)
    results = made_results()
    costless = replace(results, problems=tuple(replace(one, gradient_seconds=None) for one in results.problems))
    text = write_report(costless, tmp_path).read_text()
    assert "<th>share of defeats</th><th>without costs</th>" in text
    assert "<td>0.00 [0.00, 0.00]</td><td>not measured</td>" in text
    assert text.count("<li>Defeats: made up.</li>") == 1
    metrics = {number.metric for number in numbers(costless)}
    assert "made_up" in metrics
    assert not {"wall_clock", "without_costs"} & metrics


def test_each_metric_is_a_column_somewhere_and_has_a_definition():
    for metric in REPORTED.values():
        assert metric.sections
        assert metric.definition.endswith(".")
        assert metric.statistic in metric.make().statistics
