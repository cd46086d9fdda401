"""Fine-tuning: networks that were trained before, and new tasks with few examples for them."""

from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.finetune.task import FineTuneTask, head_alone, head_names

__all__ = ["FineTuneTask", "Pretraining", "head_alone", "head_names"]
