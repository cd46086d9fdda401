"""Logging of tables, pictures and files of results with Lightning's loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.errors import cause
from lightning_lopt.evaluation.metrics import final_loss, median_loss
from lightning_lopt.evaluation.report.numbers import Number, numbers
from lightning_lopt.evaluation.report.tables_and_pictures import curves, finals, label, overall, profile
from lightning_lopt.evaluation.results import Results
from lightning_lopt.extras import png
from lightning_lopt.io.whole import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_media(
    logger: Logger, results: Results, name: str, *, step: int | None = None, artifacts: Mapping[str, Path] | None = None
) -> None:
    """Log tables of final losses and metrics, pictures of profile and curves, and files, if ``logger`` supports them.

    ================  =============================================================================================
    Weights & Biases  Tables ``<name>/table`` (medians of final losses) and ``<name>/numbers`` (all metrics), Images
                      ``<name>/profile`` and ``<name>/curves``, and Artifacts
    TensorBoard       a text and figures
    CSV logger        files in its folder
    other loggers     no entries
    ================  =============================================================================================

    Without matplotlib, pictures are left out.

    Args:
        logger: the logger.
        results: the results.
        name: prefix of the names of the entries.
        step: step of the entries; ``None`` for the logger's default.
        artifacts: folders and files by name; the name is also the type of the Artifact.

    Example:
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> from lightning_lopt import AdamRule, evaluation, tasks
        >>> bowl = evaluation.Problem("bowl", tasks.Quadratic(torch.ones(2)), 10)
        >>> results = evaluation.evaluate({"mine": AdamRule(0.1)}, [bowl], baselines=evaluation.Baselines(seeds=1))
        >>> log_media(DummyLogger(), results, "mine")  # it stores nothing
    """
    if not isinstance(logger, WandbLogger | TensorBoardLogger | CSVLogger):
        return
    pictures = _pictures(results)
    if isinstance(logger, WandbLogger):
        _log_wandb(logger, results, name, pictures, step, artifacts or {})
        return
    names = [*results.rules, *results.against]
    text = f"{finals(results.problems, names).markdown()}\n\n{overall(numbers(results), 'loggers').markdown()}"
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, text, step)
        for key, picture in pictures.items():
            logger.experiment.add_figure(f"{name}/{key}", picture, step)
        return
    heading = "" if step is None else f"After {step} outer steps:\n\n"
    try:
        write_whole(Path(logger.log_dir) / f"{name}.md", f"{heading}{text}\n")
        for key, picture in pictures.items():
            write_whole(Path(logger.log_dir) / f"{name}_{key}.png", png(picture))
    except OSError as error:  # a full disk must not end a fit
        rank_zero_warn(f"tables and pictures were not written to {logger.log_dir} ({cause(error)}).")


def _pictures(results: Results) -> dict[str, Figure]:
    try:
        return {
            "profile": profile(results),
            "curves": curves(results.problems, list(results.rules), list(results.against)),
        }
    except ImportError:
        return {}


def _log_wandb(
    logger: WandbLogger,
    results: Results,
    name: str,
    pictures: Mapping[str, Figure],
    step: int | None,
    artifacts: Mapping[str, Path],
) -> None:
    import wandb

    names = [*results.rules, *results.against]
    losses = [
        [problem.name, split, *(median_loss(final_loss(problem.measurements[optimizer], split)) for optimizer in names)]
        for problem in results.problems
        for split in ("train", "valid")
    ]
    logger.log_table(f"{name}/table", columns=["problem", "split", *map(label, names)], data=losses, step=step)
    logger.log_table(
        f"{name}/numbers",
        columns=list(Number.__dataclass_fields__),
        data=[[*vars(number).values()] for number in numbers(results)],
        step=step,
    )
    for key, picture in pictures.items():
        logger.log_image(f"{name}/{key}", [wandb.Image(picture)], step=step)
    for kind, path in artifacts.items():
        log_artifact(logger, kind, path, kind=kind, metadata={"step": step})


def log_artifact(logger: WandbLogger, name: str, path: Path, *, kind: str, metadata: dict[str, Any]) -> None:
    """Log a folder or a file as an Artifact of the logger's run."""
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=metadata)
    if path.is_dir():
        artifact.add_dir(str(path))
    else:
        artifact.add_file(str(path))
    logger.experiment.log_artifact(artifact)
