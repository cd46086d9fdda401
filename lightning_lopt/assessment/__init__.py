"""Before a run: is a rule to be trusted with somebody's own LightningModule?"""

from lightning_lopt.assessment.assessment import Assessment
from lightning_lopt.assessment.run import assess

__all__ = ["Assessment", "assess"]
