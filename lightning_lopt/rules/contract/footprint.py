"""The footprint of a rule: memory of its state, and computation, per parameter that it trains."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_lopt.rules.base import StepContext, UpdateRule

EXAMPLES = {"matrix of 1024 x 1024": (1024, 1024), "vector of 1024": (1024,)}


class Footprint(NamedTuple):
    """Memory and computation of one step on one float32 tensor, per entry of the tensor.

    Attributes:
        state_bytes: bytes of the state, including state per tensor and shared state.
        flops: operations in matrix products, a multiply-add counting as 2; elementwise operations are not counted.
            For a rule with a :attr:`UpdateRule.period`, it is the mean over a period.
    """

    state_bytes: float
    flops: float


def footprint(rule: UpdateRule, shape: tuple[int, ...]) -> Footprint:
    """The footprint on a model with one tensor of ``shape``, computed on the meta device.

    >>> from lightning_lopt import SGDRule
    >>> footprint(SGDRule(), (8, 8))
    Footprint(state_bytes=4.0, flops=0.0)
    """
    without_values = copy.deepcopy(rule).to("meta")
    tensors = {"tensor": torch.empty(shape, device="meta")}
    number = torch.empty((), device="meta")
    state = without_values.init_state(tensors, {})

    def flops(phase: int | None) -> int:
        context = StepContext(step=number, total_steps=number, loss=number, phase=phase)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            without_values(tensors, tensors, state, context)
        return int(counter.get_total_flops())

    entries = tensors["tensor"].numel()
    mean_flops = sum(flops(phase) for phase in range(rule.period)) / rule.period
    return Footprint(sum(x.nbytes for x in tree_leaves(state)) / entries, mean_flops / entries)


def reads(rule: UpdateRule) -> list[str]:
    """The inputs that the rule reads, in words."""
    run_inputs = ["the loss"] * rule.reads_loss + ["the horizon"] * rule.reads_horizon
    return ["gradients", *run_inputs, *["validation losses"] * rule.reads_validation]


def footprint_report(rule: UpdateRule) -> str:
    """The footprint as text, with the number of meta-parameters and the inputs that the rule reads."""
    footprints = {example: footprint(rule, shape) for example, shape in EXAMPLES.items()}
    memory = ", ".join(f"{numbers.state_bytes:.1f} ({example})" for example, numbers in footprints.items())
    work = ", ".join(f"{numbers.flops:.0f} ({example})" for example, numbers in footprints.items())
    return (
        f"meta-parameters: {sum(parameter.numel() for parameter in rule.parameters())}\n"
        f"state bytes per parameter: {memory}\n"
        f"FLOPs per parameter and step, matrix products alone: {work}\n"
        f"reads: {', '.join(reads(rule))}"
    )
