"""The former place of :func:`lightning_lopt.evaluation.measurement.run_rules`."""

from lightning_lopt.evaluation.measurement import run_rules

__all__ = ["run_rules"]
