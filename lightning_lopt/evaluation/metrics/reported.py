"""The former place of the metrics of a report, :data:`lightning_lopt.evaluation.report.numbers.REPORTED`."""

from lightning_lopt.evaluation.report.numbers import REPORTED, ReportedMetric, Section, columns

__all__ = ["REPORTED", "ReportedMetric", "Section", "columns"]
