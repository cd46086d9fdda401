"""The speed-up of meta-training with two processes over one, under Lightning's Trainer (DDP over gloo, CPU).

    python examples/benchmarks/ddp_throughput.py

The work is that of meta_throughput.py: Celo2's rule, PES on truncations of 50 steps, 64 inner runs (two groups of 16
antithetic pairs, or of `--pairs`) of a perceptron 64-32-10 on 8x8 images, batch size 64; each process has one thread.
Two processes first share this work. Then each process has as much work as the single process, as in normal use. The
time per run is lower if a process advances many runs together, so shared work scales less well. The fits take turns,
so that other load on the machine affects all of them. The script prints inner steps per second of all processes
together, and the bytes that a process passes to collectives in one outer step.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from lightning_lopt import PES, Celo2BaseRule, MetaTrainer, TaskDataModule
from lightning_lopt.tasks import ImageMLP

TRUNCATION, GROUPS = 50, 2
WARM_UP = 5  # outer steps that are not timed
COLLECTIVES = ("all_reduce", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list")


class Meter(L.Callback):
    """Writes inner steps per second and bytes per outer step to a file, from rank 0, without the warm-up."""

    def __init__(self, path: Path) -> None:
        self.path, self.began, self.bytes = path, 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step != WARM_UP:
            return
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, default_hooks.allreduce_hook)  # in Python
            for name in COLLECTIVES:
                setattr(dist, name, self.counted(getattr(dist, name)))
        self.began = time.perf_counter()

    def counted(self, collective: Any) -> Any:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes += tensor.nbytes
            return collective(tensor, *args, **kwargs)

        return call

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        outer_steps = trainer.global_step - WARM_UP
        runs = module.groups * module.estimator.particles
        rate = outer_steps * TRUNCATION * runs / (time.perf_counter() - self.began)
        if trainer.is_global_zero:
            self.path.write_text(json.dumps((rate, self.bytes / outer_steps)))


def fit(processes: int, groups: int, pairs: int, outer_steps: int) -> tuple[float, float]:
    """Inner steps per second, and bytes per outer step."""
    family = ImageMLP(depths=(1,), widths=(32,), batch_sizes=(64,), activations=("relu",), variety=False)
    module = MetaTrainer(Celo2BaseRule(), PES(TRUNCATION, pairs=pairs), groups=groups, horizons=(2000, 20_000), lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        trainer = L.Trainer(
            max_steps=outer_steps,
            accelerator="cpu",
            devices=processes,
            strategy="auto" if processes == 1 else "ddp_fork",
            callbacks=[Meter(path)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, TaskDataModule([family]))
        rate, sent = json.loads(path.read_text())
    return rate, sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of each group")
    parser.add_argument("--outer-steps", type=int, default=30, help=f"the first {WARM_UP} of each fit are not timed")
    arguments = parser.parse_args()
    if arguments.outer_steps <= WARM_UP:
        parser.error(f"--outer-steps must be above {WARM_UP}, got {arguments.outer_steps}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    shared_ratios, doubled_ratios = [], []
    for repeat in range(arguments.repeats):
        single, _ = fit(1, GROUPS, arguments.pairs, arguments.outer_steps)
        shared, sent = fit(2, GROUPS, arguments.pairs, arguments.outer_steps)
        doubled, _ = fit(2, 2 * GROUPS, arguments.pairs, arguments.outer_steps)
        shared_ratios.append(shared / single)
        doubled_ratios.append(doubled / single)
        print(
            f"{repeat}: 1 process {single:6.0f}, 2 processes with the same work {shared:6.0f} "
            f"(ratio {shared / single:.2f}), 2 processes with twice the work {doubled:6.0f} inner steps/s "
            f"(ratio {doubled / single:.2f})",
            flush=True,
        )
    theta = sum(value.nbytes for value in Celo2BaseRule().parameters() if value.requires_grad)
    ratios = f"{statistics.median(shared_ratios):.2f} and {statistics.median(doubled_ratios):.2f}"
    print(f"median ratios {ratios}; {sent:.0f} bytes per outer step, {theta} of them for θ")


if __name__ == "__main__":
    main()
