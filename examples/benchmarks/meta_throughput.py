"""Inner steps per second of meta-training: many small inner runs in parallel in one process.

    python examples/benchmarks/meta_throughput.py                          # ResidualRule without orthogonalisation
    python examples/benchmarks/meta_throughput.py --rule adam --compile
    python examples/benchmarks/meta_throughput.py --device cuda --pairs 512 --compile

The work is that of Celo2's meta-training: PES on truncations of 50 steps, 32 antithetic pairs, a perceptron 64-32-10 on
8x8 images, batch size 64. One inner step is one optimizer step of one of the 64 runs. The measured time is that of the
whole estimate of the meta-gradient: perturbations, batches, inner steps, gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lightning_lopt import PES, AdamRule, Celo2BaseRule, ResidualRule, SGDRule, UpdateRule
from lightning_lopt.allocator import keep_freed_memory
from lightning_lopt.meta.engine import Compiled, Eager, Execution, Recorded
from lightning_lopt.meta.trainer import FREED_MEMORY
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP

RULES: dict[str, Callable[[], UpdateRule]] = {
    "residual": lambda: ResidualRule(orthogonalised=[]),
    "residual_orthogonal": lambda: ResidualRule(),
    "residual_constants": lambda: ResidualRule(direction=False, controller=False, orthogonalised=[]),
    "celo2": lambda: Celo2BaseRule(),
    "adam": lambda: AdamRule(),
    "sgd": lambda: SGDRule(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=tuple(RULES), default="residual")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--truncation", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch on the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="use torch.compile; the first truncation takes long")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="launch single kernels on CUDA")
    parser.add_argument("--repeats", type=int, default=7, help="truncations that are timed")
    parser.add_argument("--default-allocator", action="store_true", help="do not change the settings of malloc")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keeps_memory = not arguments.default_allocator and keep_freed_memory(FREED_MEMORY)
    family = ImageMLP(depths=(1,), widths=(32,), batch_sizes=(64,), activations=("relu",), variety=False)
    task = family.sample(generator(0))
    rule = RULES[arguments.rule]().to(arguments.device)
    estimator = PES(arguments.truncation, pairs=arguments.pairs)
    execution: Execution = Compiled() if arguments.compile else Eager()
    if not arguments.no_cuda_graphs:
        execution = Recorded(execution)

    walls, cpus = [], []
    with torch.no_grad():
        groups = [estimator.start(rule, task, horizon=20_000, seed=0)]
        began = time.perf_counter()
        for repeat in range(-1, arguments.repeats):  # the first repeat is a warm-up
            wall, cpu = time.perf_counter(), time.process_time()
            groups = estimator.estimate(rule, groups, execution).groups
            if groups[0].device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
            else:
                warm_up = time.perf_counter() - began
    steps = arguments.truncation * estimator.particles
    rates = [steps / wall for wall in walls]
    print(
        f"{arguments.rule} {task.name} {arguments.pairs} pairs truncation {arguments.truncation} {arguments.device} "
        f"threads {arguments.threads} compile {arguments.compile} CUDA graphs {not arguments.no_cuda_graphs} "
        f"freed memory kept {keeps_memory}\n"
        f"  {statistics.median(rates):8.0f} inner steps/s, median of {len(rates)} "
        f"({min(rates):.0f} to {max(rates):.0f}); first truncation {warm_up:.1f} s\n"
        f"  {steps / statistics.median(cpus):8.0f} inner steps per second of CPU time; "
        f"{1e3 * statistics.median(cpus) / arguments.truncation:.2f} ms of CPU time per step of all runs"
    )


if __name__ == "__main__":
    main()
