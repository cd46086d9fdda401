"""Draws the picture of one step of ``base``: python docs/pictures/step.py"""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROWS = (
    (
        ("gradient", "$G$, in the unit of\nthe first gradients", "#e8eaf6"),
        ("rotate", "$\\tilde G = Q_L^T\\,G\\,Q_R$\ninto the eigenbases", "#e8f5e9"),
        ("Adam there", "$\\tilde M\\,/\\,\\sqrt{V}$\nmemory grows with $t$", "#e8f5e9"),
        ("caution", "entries against the\ngradient times $1 - c$", "#e8f5e9"),
        ("rotate back", "$D = Q_L\\,(\\ldots)\\,Q_R^T$", "#e8f5e9"),
    ),
    (
        ("direction", "$d = D\\,/\\,\\mathrm{RMS}(D)$\n$r = \\mathrm{RMS}(D)$", "#e8f5e9"),
        ("size", "times $\\mathrm{RMS}(p_0)$\ntimes $(r / 0.3)^\\omega$", "#fff3e0"),
        ("weight decay", "plus $\\lambda\\,p$", "#fff3e0"),
        ("schedule", "times $\\eta\\,s(t)$:\nwarm-up, then decay", "#fff3e0"),
        ("corrections", "times $\\gamma\\,\\gamma_p$ (calibration)\ntimes $e^{-\\kappa c_p}$ (trained)", "#fce4ec"),
    ),
)
WIDTH, HEIGHT, GAP, DROP = 2.1, 1.05, 0.35, 1.75


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "step"
    figure, axes = plt.subplots(figsize=(11.5, 3.6), layout="constrained")
    centres = []
    for line, row in enumerate(ROWS):
        for column, (title, text, colour) in enumerate(row):
            left, bottom = column * (WIDTH + GAP), -line * DROP
            box = FancyBboxPatch(
                (left, bottom), WIDTH, HEIGHT, boxstyle="round,pad=0.04", facecolor=colour, edgecolor="#555555"
            )
            axes.add_patch(box)
            axes.text(left + WIDTH / 2, bottom + HEIGHT - 0.17, title, ha="center", va="center", weight="bold", size=10)
            axes.text(left + WIDTH / 2, bottom + 0.38, text, ha="center", va="center", size=9)
            centres.append((left, bottom))
    for (left, bottom), (next_left, next_bottom) in pairwise(centres):
        if bottom == next_bottom:
            arrow(axes, (left + WIDTH + 0.05, bottom + HEIGHT / 2), (next_left - 0.05, bottom + HEIGHT / 2))
        else:  # from the end of the first row to the beginning of the second
            level = bottom - 0.32
            start, end = left + WIDTH / 2, next_left + WIDTH / 2
            axes.plot([start, start, end], [bottom - 0.05, level, level], color="#555555", lw=1.2)
            arrow(axes, (end, level), (end, next_bottom + HEIGHT + 0.05))
    last = centres[-1]
    arrow(axes, (last[0] + WIDTH + 0.05, last[1] + HEIGHT / 2), (last[0] + WIDTH + 0.45, last[1] + HEIGHT / 2))
    axes.text(last[0] + WIDTH + 0.5, last[1] + HEIGHT / 2, "$-\\Delta p$", va="center", size=12)
    axes.set(xlim=(-0.2, 5 * (WIDTH + GAP) + 0.75), ylim=(-DROP - 0.2, HEIGHT + 0.2))
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555"})


if __name__ == "__main__":
    main()
