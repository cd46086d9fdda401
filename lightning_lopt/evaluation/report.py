"""Tables and pictures of a comparison, for whatever logger is in use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lightning_lopt.evaluation.comparison import Row, table
from lightning_lopt.evaluation.measurement import window_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(rows: Sequence[Row]) -> Figure:
    """Training curves of each problem, one panel each: medians over seeds, means over windows of the run.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib; run pip install "lightning-lopt[examples]".') from error
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    made = Figure(figsize=(4.2 * columns, 3 * lines), layout="constrained")
    axes = list(made.subplots(lines, columns, squeeze=False).flat)
    for axis, row in zip(axes, rows, strict=False):
        for name, curve in row.curves.items():
            axis.plot(window_ends(row.horizon), curve, label=name)
        finals = {name: losses for name, losses in row.train.items() if name not in row.curves}
        for name, losses in finals.items():
            axis.axhline(sorted(losses)[len(losses) // 2], color="black", linestyle=":", label=f"{name}, at the end")
        axis.set(title=row.problem, yscale="log", xlabel="step", ylabel="training loss")
        axis.grid(alpha=0.3)
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    made.axes[0].legend(fontsize="small")
    return made


def log_media(logger: Logger, rows: Sequence[Row], names: Sequence[str], folder: Path, step: int) -> None:
    """The table of final losses, a picture of the curves, and the rule in ``folder``, as far as ``logger`` takes them.

    Weights & Biases gets a Table, an Image and an Artifact; TensorBoard a text and a figure; the CSV logger files
    beside its metrics. Other loggers get nothing here. Without matplotlib there is no picture.
    """
    try:
        picture = figure(rows)
    except ImportError:
        picture = None
    text = table(rows, names)
    if isinstance(logger, WandbLogger):
        _log_wandb(logger, rows, names, picture, folder, step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("meta_validation", text, step)
        if picture is not None:
            logger.experiment.add_figure("meta_validation", picture, step)
    elif isinstance(logger, CSVLogger):
        target = Path(logger.log_dir)
        target.mkdir(parents=True, exist_ok=True)
        (target / "meta_validation.md").write_text(f"After {step} outer steps:\n\n{text}\n")
        if picture is not None:
            picture.savefig(target / "meta_validation.png", dpi=120)


def _log_wandb(
    logger: WandbLogger, rows: Sequence[Row], names: Sequence[str], picture: Any, folder: Path, step: int
) -> None:
    import wandb

    columns = ["problem", "split", *names]
    data = [
        [row.problem, split, *(sorted(losses[name])[len(losses[name]) // 2] for name in names)]
        for row in rows
        for split, losses in (("train", row.train), ("valid", row.valid))
    ]
    logger.log_table("meta_validation/table", columns=columns, data=data, step=step)
    if picture is not None:
        logger.log_image("meta_validation/curves", [wandb.Image(picture)], step=step)
    artifact = wandb.Artifact("rule", type="rule", metadata={"outer_step": step})
    artifact.add_dir(str(folder))
    logger.experiment.log_artifact(artifact)
