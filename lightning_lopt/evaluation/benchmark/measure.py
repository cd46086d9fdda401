"""Measurement of all optimizers on one model in one process: seconds, operations and bytes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from lightning_lopt.checks import check_sizes
from lightning_lopt.evaluation.benchmark.memory import StepMemory, measured_memory
from lightning_lopt.evaluation.benchmark.operations import operations_of
from lightning_lopt.evaluation.benchmark.optimizers import REFERENCE, Contender, NotAvailableError
from lightning_lopt.evaluation.benchmark.results import Figures, ModelResult
from lightning_lopt.evaluation.benchmark.workloads import Workload
from lightning_lopt.evaluation.step_cost import STEADY, Step, synchronised_clock, time_in_turns

RULE_STEPS, BASELINE_STEPS = 3, 12
"""Steps in which memory is recorded. A rule makes full steps at first; other optimizers have periods of up to 10."""


class _Training:
    """Computes the gradients of a workload, and restores the initial parameters, so that optimizers are independent."""

    def __init__(self, workload: Workload, autocast: torch.dtype | None) -> None:
        self.workload, self.autocast = workload, autocast
        self.leaves = workload.leaves
        self.params = [leaf for _, leaf, _ in self.leaves]
        self.start = [param.detach().clone() for param in self.params]
        self.device = self.params[0].device
        self.prepare()
        self.gradient()
        self.params_with_gradient = [param for param in self.params if param.grad is not None]

    @property
    def lacks_gradients(self) -> bool:
        return any(param.grad is None for param in self.params_with_gradient)

    @torch.no_grad()
    def put_back(self) -> None:
        torch._foreach_copy_(self.params, self.start)

    def prepare(self) -> None:
        self.put_back()
        self.workload.module.zero_grad(set_to_none=True)
        self.batch = self.workload.batch()

    def gradient(self) -> None:
        with nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast):
            loss = self.workload.loss(self.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.last_loss = loss.detach()

    def loss(self) -> Tensor:
        return self.last_loss


def measure(
    workload: Workload,
    contenders: Mapping[str, Contender],
    *,
    repeats: int = 40,
    autocast: torch.dtype | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> ModelResult:
    """Benchmark optimizers on a model.

    The optimizers take turns on the same parameters with the same gradients. Each step has new gradients. The first 40
    steps are not timed; in these steps, small networks are traced. Optimizers that fail or are not installed are left
    out, and the result contains the reason.

    Args:
        workload: the model and its batches; its parameters are restored at the end.
        contenders: optimizers by name, including :data:`~lightning_lopt.evaluation.benchmark.optimizers.REFERENCE`.
        repeats: timed steps, >= 1.
        autocast: type of forward and backward passes under ``torch.autocast``; ``None`` for no autocast.
        tell: function that receives lines about the progress.

    Raises:
        ValueError: if the reference is missing or fails, or ``repeats`` is below 1.
    """
    if REFERENCE not in contenders:
        raise ValueError(f"{REFERENCE!r} is the denominator of all ratios; add it to the optimizers.")
    check_sizes(repeats=repeats)
    training = _Training(workload, autocast)
    parameters = sum(param.numel() for param in training.params)
    steps: dict[str, Step] = {}
    memory: dict[str, StepMemory] = {}
    left_out: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, contender in contenders.items():
            tell(f"{workload.name}: memory of {name}")
            measured_steps = RULE_STEPS if contender.is_rule else BASELINE_STEPS
            try:
                steps[name], memory[name] = measured_memory(
                    lambda contender=contender: contender.build(training.leaves, training.loss),  # type: ignore[misc]
                    measured_steps,
                    training.device,
                )
            except NotAvailableError as error:
                left_out[name] = str(error)
            except Exception as error:  # optimizers of other packages may fail in any way
                left_out[name] = f"{type(error).__name__}: {error}"
            if name in steps and training.lacks_gradients:
                del steps[name]
                left_out[name] = "its step deletes the gradients, which the other optimizers need"
            training.prepare()
            training.gradient()
        if REFERENCE in left_out:
            raise ValueError(f"{REFERENCE} failed on {workload.name}: {left_out[REFERENCE]}")
        tell(f"{workload.name}: {STEADY} + {repeats} training steps")
        gradient_seconds, step_seconds = time_in_turns(
            training.gradient,
            steps,
            STEADY + repeats,
            synchronised_clock(training.device),
            prepare=training.prepare,
            put_back=training.put_back,
        )
        flops = {name: operations_of(step, contenders[name].period) for name, step in steps.items()}
    training.prepare()
    traffic = sum(param.nbytes for param in training.params)
    figures = [
        Figures(
            name,
            tuple(step_seconds[name][STEADY:]),
            flops[name],
            2 * memory[name].state + 3 * traffic,  # gradients have the size of the parameters, and are read once
            memory[name].state / parameters,
            memory[name].peak / parameters,
        )
        for name in steps
    ]
    gradient = tuple(gradient_seconds[STEADY:])
    return ModelResult(workload.name, parameters, len(training.params), gradient, tuple(figures), left_out)
