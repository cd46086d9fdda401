"""Reports of results: a page, pictures, and entries of loggers."""

from lightning_lopt.evaluation.report.loggers import log_media
from lightning_lopt.evaluation.report.numbers import Number, numbers
from lightning_lopt.evaluation.report.page import write_report
from lightning_lopt.evaluation.report.tables_and_pictures import curves, profile

__all__ = ["Number", "curves", "log_media", "numbers", "profile", "write_report"]
