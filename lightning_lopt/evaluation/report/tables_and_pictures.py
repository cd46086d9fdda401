"""The tables of a report for a page, a shell or a logger, and its pictures: curves of losses, and distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import CHECKPOINTS, WINDOWS, window_ends
from lightning_lopt.evaluation.metrics import CAP, FLOOR, final_loss, lowest, median_loss, relative, step_speedup
from lightning_lopt.evaluation.report.numbers import REPORTED, SPLIT_NAMES, TIE, Number, Section, columns
from lightning_lopt.evaluation.results import ProblemResult, Results
from lightning_lopt.evaluation.sweeps import BASELINES, FINE_TUNING_BASELINES
from lightning_lopt.extras import empty_figure, figure_text, share_axes
from lightning_lopt.wording import Outcome, TextTable, one_line, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FASTER: dict[Outcome, str] = {"win": "faster", "tie": "equal", "loss": "slower"}
"""Word of each outcome of a speed-up."""
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
_GREYS = ("black", "tab:gray", "tab:cyan", "rosybrown", "darkkhaki")
_RANGE_OPACITY = 0.18  # opacity of the area between the smallest and the largest loss over seeds


def outcome(log_ratio: float) -> Outcome:
    """The outcome for a rule, from the log-ratio of its loss to another loss; a difference up to 0.1 % is a tie.

    >>> outcome(-0.5), outcome(0.0005), outcome(math.inf)
    ('win', 'tie', 'loss')
    """
    if abs(log_ratio) <= math.log(TIE):
        return "tie"
    return "win" if log_ratio < 0 else "loss"


def label(name: str) -> str:
    """The name of an optimizer in a report; characters that cannot be printed become question marks."""
    sweep = (BASELINES | FINE_TUNING_BASELINES).get(name)
    return one_line(sweep.label if sweep is not None and sweep.label else name)


def overall(report_numbers: Sequence[Number], section: Section, group: str | None = None) -> TextTable:
    """Metrics of each rule against each reference, for one group of problems or for each group.

    Args:
        report_numbers: the numbers of a report.
        section: the section whose metrics are the columns.
        group: name of the group of problems; ``None`` for a row for each group.
    """
    metrics = columns(section)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for number in report_numbers:
        if group in (None, number.group):
            key = (label(number.rule), f"{number.group} ({number.problems})", label(number.against))
            rows.setdefault(key, {})[number.metric] = REPORTED[number.metric].text(
                number.value, number.low, number.high
            )
    keys = sorted(rows, key=lambda key: list(rows).index(key))
    heads = ["rule", "problems", "against", *(REPORTED[metric].label for metric in metrics)]
    return TextTable(heads, [[*key, *(rows[key].get(metric, "not measured") for metric in metrics)] for key in keys])


def log_ratios(results: Results) -> TextTable:
    """For each rule and every other optimizer: number of problems on which the rule is lower, and mean log-ratio.

    :class:`~lightning_lopt.MetaValidation` scores rules with the same log-ratio,
    :meth:`~lightning_lopt.evaluation.results.ProblemResult.log_ratio`.
    """
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], list[Outcome]] = {}
    names = (*results.rules, *results.against)
    for rule, reference in [(rule, reference) for rule in results.rules for reference in names if reference != rule]:
        row = [label(rule), label(reference)]
        for split in SPLIT_NAMES:
            ratios = [problem.log_ratio(rule, reference, split) for problem in results.problems]
            lower = sum(ratio < 0 for ratio in ratios)
            marks[len(rows), len(row)] = [outcome(fmean(ratios))]
            row.append(f"lower on {lower} of {len(ratios)}, mean log-ratio {fmean(ratios):+.3f}")
        rows.append(row)
    return TextTable(["rule", "against", *SPLIT_NAMES.values()], rows, marks)


def finals(problems: Sequence[ProblemResult], names: Sequence[str], against: Sequence[str] = ()) -> TextTable:
    """Losses after the last step, training / validation, medians over seeds.

    Args:
        problems: problems; each has a row.
        names: names of optimizers; each has a column.
        against: names of baselines; the marks of the other optimizers are their outcomes against the best baseline.
    """
    rows = [
        [
            one_line(problem.name),
            *(" / ".join(short(_median(problem, name, split)) for split in SPLIT_NAMES) for name in names),
        ]
        for problem in problems
    ]
    marks = {
        (row, column): [
            outcome(max(problem.log_ratio(name, baseline, split) for baseline in against)) for split in SPLIT_NAMES
        ]
        for row, problem in enumerate(problems)
        for column, name in enumerate(names, 1)
        if against and name not in against
    }
    return TextTable(["problem", *map(label, names)], rows, marks)


def bests(results: Results) -> TextTable:
    """The lowest validation loss of a run, and the best value of each further metric, medians over seeds."""
    names = [*results.rules, *results.against]
    rows = []
    for problem in results.problems:
        cells = []
        for name in names:
            run = problem.measurements[name]
            best = {key: -median_loss(lowest(-values)) for key, values in run.metrics.items()}
            metrics = "".join(f"; {one_line(key)} {short(value)}" for key, value in best.items())
            cells.append(short(_median(problem, name, "best_valid")) + metrics)
        rows.append([one_line(problem.name), *cells])
    return TextTable(["problem", *(label(name) for name in names)], rows)


def speedups(results: Results) -> TextTable:
    """Speed-up in steps on each problem: median over seeds, the smallest and the largest."""
    pairs = [(rule, baseline) for rule in results.rules for baseline in results.against]
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], list[Outcome]] = {}
    for problem in results.problems:
        row = [one_line(problem.name)]
        for rule, baseline in pairs:
            scores = step_speedup(problem.measurements[rule], problem.measurements[baseline], problem.loss_scale)
            median = scores.quantile(0.5)
            marks[len(rows), len(row)] = [outcome(-math.log(float(median)))]
            row.append(f"{median:.2f} [{scores.min():.2f}, {scores.max():.2f}]")
        rows.append(row)
    heads = ["problem", *(f"{label(rule)} over {label(baseline)}" for rule, baseline in pairs)]
    return TextTable(heads, rows, marks, FASTER)


def costs(results: Results) -> TextTable:
    """Milliseconds of the gradient and of each optimizer's step, by problem; no rows if no step was measured."""
    names = [name for name in (*results.rules, *results.against) if name in results.problems[0].step_seconds]
    rows = [
        [one_line(problem.name), f"{problem.parameters:,}", _milliseconds(problem.gradient_seconds)]
        + [_milliseconds(problem.step_seconds.get(name)) for name in names]
        for problem in results.problems
        if names
    ]
    return TextTable(["problem", "parameters", "gradient", *(f"step of {label(name)}" for name in names)], rows)


def environment(results: Results) -> TextTable:
    """The machine, the versions, and the settings and weights of each rule."""
    rows = [[one_line(key), one_line(str(value))] for key, value in results.environment.items()]
    for name, record in results.rules.items():
        arguments = ", ".join(f"{key}={value!r}" for key, value in record.config.items())
        rows.append([f"rule {one_line(name)}", f"{record.rule}({arguments}), {record.meta_parameters} meta-parameters"])
        rows.append([f"weights of {one_line(name)}", f"SHA-256 {record.weights_sha256}"])
    return TextTable(["entry", "value"], rows)


def baseline_names(results: Results) -> str:
    """The names of all baselines, joined by commas."""
    return ", ".join(map(label, results.against))


def curves(problems: Sequence[ProblemResult], rules: Sequence[str], against: Sequence[str]) -> Figure:
    """Training and validation losses in a row of two panels for each problem: medians and ranges over seeds.

    Rules have coloured solid lines; baselines have grey dashed lines.

    >>> from lightning_lopt import AdamRule, evaluation, tasks
    >>> bowl, baselines = evaluation.Problem("bowl", tasks.Quadratic(torch.ones(2)), 10), evaluation.Baselines(seeds=1)
    >>> results = evaluation.evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines)
    >>> len(curves(results.problems, ["mine"], ["adam_default"]).axes)
    2
    """
    figure = empty_figure(9.6, 2.9 * len(problems) + 0.5)
    panels = figure.subplots(len(problems), 2, squeeze=False)
    for row, problem in zip(panels, problems, strict=True):
        for axis, split in zip(row, ("train", "valid"), strict=True):
            steps = window_ends(problem.horizon, WINDOWS if split == "train" else CHECKPOINTS)
            names = (*against, *rules)
            losses: list[Tensor] = [getattr(problem.measurements[name], split) for name in names]
            for name, values in zip(names, losses, strict=True):
                _line(axis, steps, values, name, rules, against)
            kind = "training" if split == "train" else "validation"
            axis.set(title=f"{figure_text(problem.name)}, {kind}", xlabel="step", ylabel="loss")
            _limits(axis, problem, losses)
            axis.grid(alpha=0.3)
    lines, labels = panels[0][0].get_legend_handles_labels()
    order = [*range(len(against), len(labels)), *range(len(against))]  # rules first: a narrow window shows the left
    lines, labels = ([values[index] for index in order] for values in (lines, labels))
    figure.legend(lines, labels, loc="outside upper left", ncols=min(4, len(labels)), fontsize="small")
    return figure


def profile(results: Results) -> Figure:
    """The distribution of results over runs and problems; mean values do not show it.

    The left panel shows the share of runs whose speed-up in steps over a baseline is at least the value on the axis, as
    in VeLO's figure (https://arxiv.org/abs/2211.09760) and the score distributions of https://arxiv.org/abs/2108.13264.
    The right panel is a performance profile (Dolan and Moré, 2002, https://arxiv.org/abs/cs/0102001): the final loss in
    training of a run is divided by the loss of the best optimizer on the same problem and seed, and the panel shows the
    share of runs whose ratio is at most the value on the axis.

    >>> from lightning_lopt import AdamRule, evaluation, tasks
    >>> bowl, baselines = evaluation.Problem("bowl", tasks.Quadratic(torch.ones(2)), 10), evaluation.Baselines(seeds=1)
    >>> results = evaluation.evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines)
    >>> len(profile(results).axes)
    2
    """
    figure = empty_figure(9.6, 3.8)
    speedup_panel, ratio_panel = figure.subplots(1, 2)
    rules, against = list(results.rules), list(results.against)
    for rule in rules:
        for baseline in against:
            scores = [
                step_speedup(problem.measurements[rule], problem.measurements[baseline], problem.loss_scale)
                for problem in results.problems
            ]
            ordered = torch.cat(scores).sort().values.tolist()
            shares = [1 - index / len(ordered) for index in range(len(ordered))]
            speedup_panel.step(
                [1e-3, *ordered, 1e3],
                [1.0, *shares, 0.0],
                where="pre",
                color=_COLOURS[rules.index(rule) % len(_COLOURS)],
                linestyle=("-", "--", ":", "-.")[against.index(baseline) % 4],
                label=f"{figure_text(label(rule))} over {figure_text(label(baseline))}",
            )
    speedup_panel.axvline(1.0, color="black", linewidth=0.8)
    share_axes(speedup_panel, "speed-up", "speed-up in steps, at least", (0.05, 20), [0.1, 0.2, 0.5, 1, 2, 5, 10])
    names = [*rules, *against]
    finals_by_name = [
        [relative(final_loss(problem.measurements[name], "train"), problem.loss_scale) for problem in results.problems]
        for name in names
    ]
    levels = torch.stack([torch.cat(losses) for losses in finals_by_name]) + FLOOR
    for name, ratios in zip(names, levels / levels.amin(0), strict=True):
        ordered = ratios.sort().values.tolist()
        shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
        ratio_panel.step([1.0, *ordered, 1e3], [0.0, *shares, 1.0], where="post", **_style(name, rules, against))
    over_best = "final training loss over the best one, at most"
    share_axes(ratio_panel, "performance profile", over_best, (1.0, 10.0), [1, 1.5, 2, 3, 5, 10])
    return figure


def _median(problem: ProblemResult, name: str, split: str) -> float:
    return median_loss(final_loss(problem.measurements[name], split))


def _milliseconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{1e3 * seconds:.3g} ms"


def _line(
    axis: Any, steps: Sequence[int], values: Tensor, name: str, rules: Sequence[str], against: Sequence[str]
) -> None:
    finite = torch.where(values.isfinite(), values, math.inf)
    medians = finite.sort(1).values[:, (finite.shape[1] - 1) // 2]
    style = _style(name, rules, against)
    axis.plot(steps, torch.where(medians.isfinite(), medians, math.nan).tolist(), **style)
    low, high = finite.amin(1), finite.amax(1)
    inside = (low.isfinite() & high.isfinite()).tolist()
    axis.fill_between(
        steps, low.tolist(), high.tolist(), where=inside, color=style["color"], alpha=_RANGE_OPACITY, linewidth=0
    )


def _style(name: str, rules: Sequence[str], against: Sequence[str]) -> dict[str, Any]:
    names, colours, line, width = (rules, _COLOURS, "-", 1.8) if name in rules else (against, _GREYS, "--", 1.3)
    colour = colours[list(names).index(name) % len(colours)]
    return {"color": colour, "linestyle": line, "linewidth": width, "label": figure_text(label(name))}


def _limits(axis: Any, problem: ProblemResult, losses: Sequence[Tensor]) -> None:
    """Set the limits of the loss axis, which is logarithmic for positive losses; very large losses lie outside."""
    values = torch.cat([curve.flatten() for curve in losses])
    values = values[values.isfinite()]
    if not len(values):
        return
    low, high = float(values.min()), min(float(values.max()), CAP * problem.loss_scale)
    if low > 0 and high > low:
        axis.set(yscale="log", ylim=(max(low, 1e-5 * problem.loss_scale) * 0.9, high * 1.1))
    elif high > low:
        axis.set(ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)))
