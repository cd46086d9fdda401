"""The former place of :func:`lightning_lopt.evaluation.evaluate`."""

from lightning_lopt.evaluation.evaluator import evaluate

__all__ = ["evaluate"]
