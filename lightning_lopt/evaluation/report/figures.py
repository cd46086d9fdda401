"""The pictures of a report: curves of losses, and distributions of speed-ups and loss ratios over runs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import CHECKPOINTS, window_ends
from lightning_lopt.evaluation.metrics import CAP, FLOOR, final_loss, relative, step_speedup
from lightning_lopt.evaluation.report.tables import label, one_line
from lightning_lopt.evaluation.results import ProblemResult, Results
from lightning_lopt.extras import how_to_install

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
_GREYS = ("black", "tab:gray", "tab:cyan", "rosybrown", "darkkhaki")
_RANGE_OPACITY = 0.18  # opacity of the area between the smallest and the largest loss over seeds


def empty_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; it opens no window.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib; {how_to_install('examples')}.") from error
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def curves(problems: Sequence[ProblemResult], rules: Sequence[str], against: Sequence[str]) -> Figure:
    """Training and validation losses in a row of two panels for each problem: medians and ranges over seeds.

    Rules have coloured solid lines; baselines have grey dashed lines.
    """
    figure = empty_figure(9.6, 2.9 * len(problems) + 0.5)
    panels = figure.subplots(len(problems), 2, squeeze=False)
    for row, problem in zip(panels, problems, strict=True):
        for axis, split in zip(row, ("train", "valid"), strict=True):
            count = {"train": None, "valid": CHECKPOINTS}[split]
            steps = window_ends(problem.horizon) if count is None else window_ends(problem.horizon, count)
            for name in (*against, *rules):
                values: Tensor = getattr(problem.measurements[name], split)
                _line(axis, steps, values, name, rules, against)
            kind = "training" if split == "train" else "validation"
            axis.set(title=f"{_text(problem.name)}, {kind}", xlabel="step", ylabel="loss")
            _limits(axis, problem, [getattr(problem.measurements[name], split) for name in (*against, *rules)])
            axis.grid(alpha=0.3)
    handles, names = panels[0][0].get_legend_handles_labels()
    order = [*range(len(against), len(names)), *range(len(against))]  # rules first: a narrow window shows the left part
    handles, names = ([values[index] for index in order] for values in (handles, names))
    figure.legend(handles, names, loc="outside upper left", ncols=min(4, len(names)), fontsize="small")
    return figure


def profile(results: Results) -> Figure:
    """The distribution of results over runs and problems; mean values do not show it.

    The left panel shows the share of runs whose speed-up in steps over a baseline is at least the value on the axis, as
    in VeLO's figure (https://arxiv.org/abs/2211.09760) and the score distributions of https://arxiv.org/abs/2108.13264.
    The right panel is a performance profile (Dolan and Moré, 2002, https://arxiv.org/abs/cs/0102001): the final loss in
    training of a run is divided by the loss of the best optimizer on the same problem and seed, and the panel shows the
    share of runs whose ratio is at most the value on the axis.
    """
    figure = empty_figure(9.6, 3.8)
    speedup_panel, ratio_panel = figure.subplots(1, 2)
    rules, against = list(results.rules), list(results.against)
    for rule in rules:
        for baseline in against:
            scores = torch.cat(
                [
                    step_speedup(problem.measurements[rule], problem.measurements[baseline], problem.loss_scale)
                    for problem in results.problems
                ]
            )
            style = ("-", "--", ":", "-.")[against.index(baseline) % 4]
            ordered = scores.sort().values.tolist()
            shares = [1 - index / len(ordered) for index in range(len(ordered))]
            speedup_panel.step(
                [1e-3, *ordered, 1e3],
                [1.0, *shares, 0.0],
                where="pre",
                color=_COLOURS[rules.index(rule) % len(_COLOURS)],
                linestyle=style,
                label=f"{_text(label(rule))} over {_text(label(baseline))}",
            )
    speedup_panel.axvline(1.0, color="black", linewidth=0.8)
    speedup_panel.set(xscale="log", xlim=(0.05, 20), ylim=(0, 1.02), xlabel="speed-up in steps, at least")
    speedup_panel.set(title="speed-up", ylabel="share of runs")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    speedup_panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    speedup_panel.minorticks_off()
    names = [*rules, *against]
    levels = torch.stack(
        [
            torch.cat(
                [
                    relative(final_loss(problem.measurements[name], "train"), problem.loss_scale) + FLOOR
                    for problem in results.problems
                ]
            )
            for name in names
        ]
    )
    ratios = levels / levels.amin(0)
    for name, ratios_of_optimizer in zip(names, ratios, strict=True):
        ordered = ratios_of_optimizer.sort().values.tolist()
        shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
        ratio_panel.step([1.0, *ordered, 1e3], [0.0, *shares, 1.0], where="post", **_style(name, rules, against))
    ratio_panel.set(
        xscale="log", xlim=(1.0, 10.0), ylim=(0, 1.02), xlabel="final training loss over the best one, at most"
    )
    ratio_panel.set(title="performance profile", ylabel="share of runs")
    ticks = [1, 1.5, 2, 3, 5, 10]
    ratio_panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ratio_panel.minorticks_off()
    for axis in (speedup_panel, ratio_panel):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return figure


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
    if name in rules:
        colour = _COLOURS[list(rules).index(name) % len(_COLOURS)]
        return {"color": colour, "linestyle": "-", "linewidth": 1.8, "label": _text(label(name))}
    colour = _GREYS[list(against).index(name) % len(_GREYS)]
    return {"color": colour, "linestyle": "--", "linewidth": 1.3, "label": _text(label(name))}


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


def _text(text: str) -> str:
    """A text that matplotlib shows unchanged: ``$`` would begin a formula, a first ``_`` would hide a legend entry."""
    line = one_line(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line
