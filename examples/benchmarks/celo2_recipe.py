"""Estimate the time of Celo2's meta-training recipe from the seconds of some of its 100,000 outer steps.

    python examples/benchmarks/celo2_recipe.py --compile                    # on one GPU
    python examples/benchmarks/celo2_recipe.py --accelerator cpu --steps 10

The recipe is that of ``examples/configs/celo2_one_gpu.yaml``: PES, 4 groups of 8 antithetic pairs, truncations of 50
steps, horizons log-uniform in [100, 2000], a random scale for all weights of a task. The measured time contains all
work of Lightning's Trainer: drawing tasks, recording steps and logging. The first outer steps, which compile, are not
timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_lopt import PES, Celo2Rule, MetaTrainer, TaskDataModule

WHOLE = 100_000  # outer steps of the recipe
PIECE = 20  # outer steps that are timed together; the host waits for the device only after them


class Clock(L.Callback):
    """The times at which outer steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available() and len(self.ends) % PIECE == 0:  # other steps are launched ahead
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="outer steps to make")
    parser.add_argument("--skip", type=int, default=None, help="first outer steps, not timed; a quarter by default")
    parser.add_argument("--accelerator", default="gpu")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rule = Celo2Rule(adam_roles=["vector"], adam_betas=(0.9, 0.95))
    estimator = PES(50, pairs=8, sigma=0.01)
    module = MetaTrainer(
        rule,
        estimator,
        groups=4,
        horizons=(100, 2000),
        lr=5e-5,
        warmup_steps=0,
        weight_decay=1e-4,
        compile=arguments.compile,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=arguments.steps,
            accelerator=arguments.accelerator,
            devices=1,
            logger=CSVLogger(folder),
            log_every_n_steps=50,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(module, TaskDataModule("celo4", augmentation="celo"))
    skip = arguments.steps // 4 if arguments.skip is None else arguments.skip
    ends = clock.ends[skip - skip % PIECE :]
    piece = min(PIECE, len(ends) - 1)
    times = [(ends[start + piece] - ends[start]) / piece for start in range(0, len(ends) - piece, piece)]
    step = statistics.median(times)
    print(
        f"{1e3 * step:.1f} ms for an outer step, median of {len(times)} times {piece} "
        f"({1e3 * min(times):.1f} to {1e3 * max(times):.1f}); {4 * estimator.particles * 50 / step:.0f} inner steps/s; "
        f"{WHOLE * step / 60:.0f} minutes for {WHOLE} outer steps"
    )


if __name__ == "__main__":
    main()
