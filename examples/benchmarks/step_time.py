"""Milliseconds of one optimizer step, gradients given: learned rules as deployed, beside AdamW and Muon.

    python examples/benchmarks/step_time.py --model mlp                      # 0.3 million parameters, on the CPU
    python examples/benchmarks/step_time.py --model vit_b --device cuda      # 86 million: PyLO's benchmark
    python examples/benchmarks/step_time.py --model gpt2_m --device cuda     # 355 million

What is timed is ``optimizer.step()`` alone, medians; the state of each is dropped before the next one comes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_lopt import (
    AdafacMLPRule,
    Celo2BaseRule,
    Celo2Rule,
    LearnedOptimizer,
    UpdateRule,
    VeLORule,
    load_rule,
)


class Encoder(nn.Module):
    """A transformer's parameters: ``depth`` blocks of ``width``, and an embedding of ``symbols`` of that width."""

    def __init__(self, symbols: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(width, heads, 4 * width) for _ in range(depth)])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
    "vit_b": lambda: Encoder(1000, 768, 12, 12),
    "gpt2_m": lambda: Encoder(50257, 1024, 24, 16),
}
RULES: dict[str, Callable[[], UpdateRule]] = {
    "base": lambda: load_rule("base"),
    "celo2_base": lambda: Celo2BaseRule(),
    "celo2": lambda: Celo2Rule(),
    "adafac_mlp": lambda: AdafacMLPRule(),
    "velo": lambda: VeLORule(),
}
BASELINES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw_foreach": lambda model: torch.optim.AdamW(model.parameters(), lr=0.0, foreach=True),
    "adamw_fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.0, fused=True),
}
if hasattr(torch.optim, "Muon"):  # from torch 2.9 on; its matrices alone
    BASELINES["muon"] = lambda model: torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.0)


def step_of(name: str, model: nn.Module) -> Callable[[], object]:
    """One step of the optimizer of that name."""
    if name in BASELINES:
        return BASELINES[name](model).step
    optimizer = LearnedOptimizer(model, RULES[name](), total_steps=1000, lr=0.0)
    loss = torch.ones((), device=next(model.parameters()).device)
    return lambda: optimizer.step(loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="mlp")
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=["base", "celo2_base", "adafac_mlp"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on the CPU")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--tf32", action="store_true", help="matrix products of float32 in TF32, as PyLO's figures are")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    torch.manual_seed(0)
    model = MODELS[arguments.model]().to(arguments.device)
    for param in model.parameters():
        param.grad = 1e-3 * torch.randn_like(param)
    cuda = arguments.device.startswith("cuda")
    count = sum(param.numel() for param in model.parameters())
    print(f"{arguments.model}, {count / 1e6:.1f} million parameters, {arguments.device}, threads {arguments.threads}")
    for name in (*BASELINES, *arguments.rules):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        step, times = step_of(name, model), []
        for repeat in range(3 + arguments.repeats):
            begin = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            if repeat >= 3:
                times.append(1e3 * (time.perf_counter() - begin))
        memory = f", peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if cuda else ""
        print(
            f"  {name:14s} {statistics.median(times):8.2f} ms ({min(times):.2f} to {max(times):.2f}){memory}",
            flush=True,
        )


if __name__ == "__main__":
    main()
