"""Results as a page, as pictures, and as what loggers take."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_lopt.evaluation.report.figures import curves, png, profile
from lightning_lopt.evaluation.report.loggers import log_media
from lightning_lopt.evaluation.report.numbers import Number, numbers
from lightning_lopt.evaluation.report.page import page
from lightning_lopt.evaluation.results import Results
from lightning_lopt.io.whole import write_whole

__all__ = ["Number", "curves", "log_media", "numbers", "profile", "write_report"]

RESULTS = "results.json"
PAGE = "report.html"


def write_report(results: Results, folder: str | os.PathLike[str]) -> Path:
    """Write ``results.json``, ``report.html`` and its pictures as PNG files; returns the page's path.

    The page shows what the file holds, six digits of each loss: everything on it can be computed from the file alone.
    Without matplotlib it has no pictures. Each file is written whole or not at all, the results first.

    Raises:
        OSError: if one cannot be written.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, Problem, evaluate
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> baselines = Baselines(seeds=1, shipped=False)
        >>> results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(results, folder).name
        'report.html'
    """
    target = Path(folder)
    results.save(target / RESULTS)
    results = Results.load(target / RESULTS)
    pictures = _pictures(results)
    path = target / PAGE
    write_whole(path, page(results, numbers(results), pictures))
    for name, data in pictures.items():
        write_whole(target / f"{name}.png", data)
    return path


def _pictures(results: Results) -> dict[str, bytes]:
    """PNG files by name."""
    rules, against = list(results.rules), list(results.against)
    try:
        figures = {"profile": profile(results)}
        for index, problem in enumerate(results.problems, 1):
            figures[f"curves_{index:02d}"] = curves([problem], rules, against)
    except ImportError:
        return {}
    return {name: png(figure) for name, figure in figures.items()}
