"""The decrease of the loss that the last update predicts, on models with good steps and with far too long steps.

python examples/research/promise.py

The script runs a rule's constants without calibration, and multiplies the steps by several factors. For each factor, it
prints the loss after 600 steps, and the mean of -<g_t, u_(t-1)> / L_t over each sixth of the run. This is the relative
decrease of the loss that a repetition of the last update predicts; it is far below 0 if steps are too long.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from lightning_lopt import LearnedOptimizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from meta_training import MODELS, Batches, Model, uncalibrated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="base")
    parser.add_argument("--models", nargs="+", default=["siren", "scaled", "gru", "mlp"], choices=list(MODELS))
    parser.add_argument("--factors", nargs="+", type=float, default=[0.25, 1.0, 3.0])
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        for factor in arguments.factors:
            torch.manual_seed(0)
            build, size = MODELS[name]
            net, examples = build()
            module, params = Model(net), list(net.parameters())
            batches = Batches(examples, size, arguments.steps, 0)
            optimizer = LearnedOptimizer(net, uncalibrated(arguments.rule), total_steps=arguments.steps, lr=factor)
            update = [torch.zeros_like(param) for param in params]
            predicted_decreases = []
            for step in range(arguments.steps):
                optimizer.zero_grad()
                loss = module.training_step(batches[step], 0)
                loss.backward()
                products = [(param.grad * change).sum() for param, change in zip(params, update, strict=True)]
                predicted_decreases.append(float(-sum(products) / loss.detach()))
                before = [param.detach().clone() for param in params]
                optimizer.step(loss=loss.detach())
                update = [param.detach() - previous for param, previous in zip(params, before, strict=True)]
            sixths = torch.tensor(predicted_decreases).chunk(6)
            means = " ".join(f"{float(part.mean()):+.3f}" for part in sixths)
            print(f"{name:7} steps x {factor:<5g} last loss {float(loss.detach()):.4f}  promise {means}", flush=True)


if __name__ == "__main__":
    main()
