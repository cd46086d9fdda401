"""The former place of :mod:`lightning_lopt.assessment`."""

from lightning_lopt.assessment import Assessment, assess

__all__ = ["Assessment", "assess"]
