"""Memory of a rule on a model, by the type of the rule's state."""

from __future__ import annotations

from functools import partial

import torch

from lightning_lopt.evaluation.benchmark.memory import measured_memory
from lightning_lopt.evaluation.benchmark.workloads import RECIPES, named_workload
from lightning_lopt.evaluation.step_cost import learned
from lightning_lopt.rules.base import UpdateRule

MODEL = "char_transformer"


def rule_memory(rule: UpdateRule, model: str = MODEL) -> dict[str, tuple[float, float]]:
    """Bytes per parameter of the state, and further bytes at the peak of a step, by the name of the state's type.

    The memory is measured on the CPU, in three steps of :class:`~lightning_lopt.LearnedOptimizer`.

    Args:
        rule: the rule; it is not changed.
        model: key of :data:`~lightning_lopt.evaluation.benchmark.workloads.RECIPES`.
    """
    device = torch.device("cpu")
    workload = named_workload(model, device)
    loss = workload.loss(workload.batch())
    loss.backward()  # type: ignore[no-untyped-call]
    leaves = workload.leaves
    parameters = sum(leaf.numel() for _, leaf, _ in leaves)
    memory_by_type = {}
    for dtype in (torch.float32, torch.bfloat16):
        build = partial(learned, leaves, rule, loss.detach, 1000, state_dtype=dtype)
        _, memory = measured_memory(build, 3, device)
        memory_by_type[str(dtype).removeprefix("torch.")] = (memory.state / parameters, memory.peak / parameters)
    return memory_by_type


def memory_report(rule: UpdateRule) -> str:
    """:func:`rule_memory` as a line of text."""
    parts = [
        f"state {state:.1f}, and {peak:.1f} more at the peak of a step ({dtype} state)"
        for dtype, (state, peak) in rule_memory(rule).items()
    ]
    return f"bytes per parameter on {MODEL} ({RECIPES[MODEL].about}): {'; '.join(parts)}"
