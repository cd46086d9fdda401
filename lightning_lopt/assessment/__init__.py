"""Assessment of a rule on the user's LightningModule before a long run."""

from lightning_lopt.assessment.assessment import Assessment
from lightning_lopt.assessment.run import assess

__all__ = ["Assessment", "assess"]
