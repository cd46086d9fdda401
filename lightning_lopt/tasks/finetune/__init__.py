"""Fine-tuning: pretrained networks, and new tasks with few examples for these networks."""

from lightning_lopt.tasks.finetune.family import FineTuneFamily
from lightning_lopt.tasks.finetune.images import FineTuneImages
from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.finetune.students import FineTuneStudents
from lightning_lopt.tasks.finetune.task import FineTuneTask, head_alone, head_names
from lightning_lopt.tasks.finetune.texts import FineTuneTexts

__all__ = [
    "FineTuneFamily",
    "FineTuneImages",
    "FineTuneStudents",
    "FineTuneTask",
    "FineTuneTexts",
    "Pretraining",
    "head_alone",
    "head_names",
]
