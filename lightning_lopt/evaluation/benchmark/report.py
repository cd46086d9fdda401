"""The results of a benchmark as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_lopt.evaluation.benchmark.device_limits import DeviceLimits
from lightning_lopt.evaluation.benchmark.results import ModelResult
from lightning_lopt.extras import empty_figure
from lightning_lopt.wording import TextTable, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = [
    "optimizer",
    "step / AdamW, medians",
    "step / AdamW, means",
    "training step / AdamW's",
    "share of training step",
    "median ms",
    "mean ms",
    "worst ms",
    "GFLOP",
    "floor ms, FLOPs",
    "floor ms, bytes",
    "state B/param",
    "peak B/param",
]


def table(result: ModelResult, limits: DeviceLimits) -> TextTable:
    """A table with a row for each optimizer; the first columns are ratios."""
    rows = [
        [
            one_line(figures.name),
            f"{result.ratio(figures):.2f}",
            f"{result.ratio_of_means(figures):.2f}",
            f"{result.training_ratio(figures):.2f}",
            f"{100 * result.share(figures):.0f} %",
            *(f"{1e3 * seconds:.3g}" for seconds in (figures.median, figures.mean, figures.worst)),
            f"{1e-9 * sum(figures.flops.values()):.3g}",
            f"{1e3 * limits.seconds_of_products(figures.flops):.3g}",
            f"{1e3 * limits.seconds_of_bytes(figures.moved):.3g}",
            f"{figures.state:.1f}",
            f"{figures.peak:.1f}",
        ]
        for figures in result.figures
    ]
    return TextTable(HEADS, rows)


def text(result: ModelResult, limits: DeviceLimits) -> str:
    """A heading, the table and the reasons for missing optimizers, as markdown."""
    heading = (
        f"{one_line(result.name)}: {result.parameters / 1e6:.3g} million parameters in {result.tensors} tensors; "
        f"forward and backward {1e3 * result.gradient_median:.3g} ms"
    )
    missing = [f"{one_line(name)} is left out: {one_line(reason)}" for name, reason in result.left_out.items()]
    return "\n".join([heading, "", table(result, limits).markdown(), *([""] if missing else []), *missing])


def picture(results: Sequence[ModelResult], limits: DeviceLimits) -> Figure:
    """A figure with a row of two panels for each model: the parts of a training step, and bytes for each parameter.

    A black tick in a bar of the first panel marks the least time of the optimizer's step on the device (floor).
    """
    most_optimizers = max(len(result.figures) for result in results)
    figure = empty_figure(10.0, len(results) * (0.3 * most_optimizers + 1.0) + 0.5)
    panels = figure.subplots(len(results), 2, squeeze=False)
    for (time_panel, memory_panel), result in zip(panels, results, strict=True):
        names = [one_line(figures.name) for figures in result.figures]
        places = range(len(names))
        gradient = 1e3 * result.gradient_median
        means = [1e3 * figures.mean for figures in result.figures]
        time_panel.barh(places, [gradient] * len(names), color="lightgray", label="forward and backward")
        time_panel.barh(places, means, left=gradient, color="tab:blue", label="optimizer")
        floors = [gradient + 1e3 * figures.floor(limits) for figures in result.figures]
        time_panel.plot(
            floors, places, "|", color="black", markersize=12, markeredgewidth=2, label="floor of the device"
        )
        for place, figures in zip(places, result.figures, strict=True):
            end = gradient + means[place]
            ratio = f"{result.training_ratio(figures):.2f}×"
            time_panel.annotate(ratio, (end, place), (3, 0), textcoords="offset points", va="center")
        time_panel.set(title=f"{one_line(result.name)}: training step", xlabel="ms, mean; numbers: ratio to AdamW")
        time_panel.set_xlim(0, 1.25 * (gradient + max(means)))
        memory_panel.barh(places, [figures.state for figures in result.figures], color="tab:green", label="state")
        memory_panel.barh(
            places,
            [figures.peak for figures in result.figures],
            left=[figures.state for figures in result.figures],
            color="tab:orange",
            label="peak of a step, in addition to the state",
        )
        memory_panel.set(
            title=f"{result.parameters / 1e6:.3g} million parameters: memory", xlabel="bytes per parameter"
        )
        time_panel.set_yticks(places, names)
        memory_panel.set_yticks(places, [])
        for axis in (time_panel, memory_panel):
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
            axis.set_axisbelow(True)
    handles = [handle for axis in panels[0] for handle in axis.get_legend_handles_labels()[0]]
    names = [handle.get_label() for handle in handles]
    figure.legend(handles, names, loc="outside upper center", ncols=len(handles), fontsize="small")
    return figure
