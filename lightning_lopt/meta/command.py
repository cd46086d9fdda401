"""``lightning-lopt meta-train``: a fit of :class:`MetaTrainer`, by flags or from a YAML file."""

from __future__ import annotations

import argparse
import pickle
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar

from lightning_lopt.command_line import BAD_INPUT
from lightning_lopt.extras import how_to_install
from lightning_lopt.terminal import complain

CONFIGS_ARE_CODE = (
    "A config is code: the classes and functions that its class_path entries name are imported and called with the "
    "arguments beside them, as in every LightningCLI. Only run configs that you trust. (Folders of rules are data: "
    "nothing in them is run.)"
)
EXAMPLE = "example: lightning-lopt meta-train --config examples/configs/base.yaml --trainer.max_steps 20"


class _StartRecord(L.Callback):
    """Records whether training has started."""

    has_started = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.has_started = True


def meta_train_main(arguments: Sequence[str]) -> int:
    """Fit a :class:`MetaTrainer` as LightningCLI does; returns the exit status.

    A config is code: the classes and functions that its ``class_path`` entries name are imported and called. An error
    before the first outer step is printed as one sentence; a later error is printed with its traceback, too.

    Raises:
        ImportError: if jsonargparse is not installed.
        ValueError: for values that :class:`MetaTrainer` or another class refuses.
    """
    try:
        import jsonargparse  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"meta-train needs the package jsonargparse, which is not installed; {how_to_install('cli')}."
        ) from error
    from lightning.pytorch.cli import LightningCLI

    from lightning_lopt.meta import MetaTrainer, TaskDataModule
    from lightning_lopt.meta.outer_progress import OuterProgress

    class MetaTrainingCLI(LightningCLI):
        """Adds a progress bar of outer steps, unless the config contains a progress bar or turns progress bars off."""

        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
            config = self._get(self.config_init, "trainer")
            callbacks = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
            if config.enable_progress_bar is not False and not any(
                isinstance(callback, ProgressBar) for callback in callbacks
            ):
                kwargs["callbacks"] = [*(callback for callback in callbacks if callback is not None), OuterProgress()]
            return super().instantiate_trainer(**kwargs)

    # The arguments are passed as args, since DDP starts further processes with the unchanged sys.argv.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    start_record = _StartRecord()
    try:
        MetaTrainingCLI(
            MetaTrainer,
            TaskDataModule,
            args=["fit", *arguments],
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [start_record]},
            parser_kwargs={
                "prog": "lightning-lopt meta-train",
                "exit_on_error": False,
                "fit": {"epilog": f"{EXAMPLE} --- {CONFIGS_ARE_CODE}", "exit_on_error": False},
            },
        )
    except argparse.ArgumentError as error:
        sentence = " ".join(str(error).split()).rstrip(".")
        complain(f"lightning-lopt meta-train: {sentence}; 'lightning-lopt meta-train --help' shows all arguments.")
        sys.exit(BAD_INPUT)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "--ckpt_path names no checkpoint of a meta-training; give a checkpoint that meta-training has written."
        ) from error
    except (ValueError, ImportError, OSError):
        if start_record.has_started:
            traceback.print_exc(file=sys.stderr)
        raise
    return 0
