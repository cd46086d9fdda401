"""Compare directions of the hand-designed part, for choosing, on problems that are in no report.

python examples/research/directions.py --data mnist10k.npz cifar10_16x16.npz --variants rotated before_half
python examples/research/directions.py --data mnist10k.npz cifar10_16x16.npz --variants rotated --only vit deep tab
python examples/research/directions.py --data mnist10k.npz cifar10_16x16.npz --variants rotated --turn-every 1 4 8

All variants have the constants of `base`. For each problem, the script prints log-ratios of final losses, training /
validation, to the losses of orthogonalised momentum (median of the seeds; below 0 is better). At the end, it prints
means, and the IQM of the speed-up in steps over tuned AdamW and tuned Muon (`--against`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lightning_lopt import ResidualRule, load_rule
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import Measurement, Problem, run_rules
from lightning_lopt.evaluation.metrics import iqm, step_speedup
from lightning_lopt.evaluation.results import ProblemResult
from lightning_lopt.evaluation.suites import long_runs, make_suite
from lightning_lopt.evaluation.suites.long import language_model, regression
from lightning_lopt.rules.base import Role, TensorState
from lightning_lopt.rules.residual_parts.role_constants import Constants
from lightning_lopt.rules.shared.arithmetic import TINY, matrix_shape, orthogonalise, unit_rms
from lightning_lopt.tasks.data import resolve
from lightning_lopt.tasks.mixtures import make_families
from lightning_lopt.tasks.task_mixture import TaskMixture

DECAY = 0.95  # decay of all averages of a variant
EXAMPLES = 3000
FROM_SUITES = {  # problem: suite, index of the set of images
    "mlp": ("small", 0),
    "vit": ("small", 0),
    "autoencoder": ("small", 0),
    "vae": ("small", 0),
    "deep": ("small", 0),
    "cnn": ("small", 1),
    "resnet": ("small", 1),
    "mixer": ("small", 1),
    "finetune": ("small", 1),
    "heavy-tails": ("shift", 0),
    "frozen-half": ("shift", 0),
    "large-weights": ("shift", 0),
    "huge-batches": ("shift", 0),
}
DRAWN = {  # problem: family, seed, horizon
    "rnn-a": ("char_rnn", 5006, 500),
    "rnn-b": ("char_rnn", 5103, 500),
    "transformer-a": ("char_transformer", 5009, 600),
    "transformer-b": ("char_transformer", 5200, 2500),
    "tab-classes": ("tabular_classification", 31, 300),
    "tab-values": ("tabular_regression", 32, 300),
    "teacher": ("teacher", 33, 400),
    "values-long": ("tabular_regression", 41, 4000),
    "teacher-long": ("teacher", 42, 4000),
}


def problems(paths: Sequence[str]) -> list[Problem]:
    """Twenty-three small problems of two sets of images, and of text and tables that the suites do not use."""
    images = [resolve(path)[0] for path in paths]
    images = [source.take(torch.arange(min(EXAMPLES, len(source)))) for source in images]
    small = []
    for name, (suite, index) in FROM_SUITES.items():
        source = images[index % len(images)]
        small += [p for p in make_suite(suite, [source]) if p.name == f"{source.name}-{name}"]
    for name, (family, seed, horizon) in DRAWN.items():
        small.append(Problem(name, TaskMixture(make_families(family)).sample(seed), horizon, family))
    return [*small, long_runs(3000, [images[0]])[0]]


def long_problems(paths: Sequence[str], horizon: int = 10_000) -> list[Problem]:
    """Five problems like those of the suite ``long``, on other images, other text and other tables."""
    return [
        long_runs(horizon, resolve(paths[0])[:1])[0],
        language_model(horizon, 1),
        Problem(f"values-{horizon}", TaskMixture(make_families("tabular_regression")).sample(41), horizon),
        *(regression(horizon, seed) for seed in (1, 2)),
    ]


class Variant(ResidualRule):
    """Orthogonalised momentum with a second moment before or after it, or Adam in exact eigenbases instead."""

    kind = ""

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        state = super().init_tensor(param, role)
        if param.ndim >= 2:
            rows, columns = matrix_shape(param.shape)
            state["moment"] = param.new_zeros(rows, 1 if self.kind == "row" else columns)
            state["weight"] = param.new_zeros(())  # sum of the weights in the average
            if self.kind == "soap":
                state["left"], state["right"] = param.new_zeros(rows, rows), param.new_zeros(columns, columns)
        return state

    def _accumulate(
        self, grad: Tensor, old: Mapping[str, Tensor], at: Constants, *, turn: bool, **memory: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        next_state, inside = super()._accumulate(grad, old, at, turn=turn)
        if "moment" in old:
            next_state["weight"] = torch.lerp(torch.ones_like(old["weight"]), old["weight"], DECAY)
        if "moment" in old and self.kind not in ("row", "entry"):
            matrix = grad.reshape(matrix_shape(grad.shape))
            if self.kind == "soap":
                next_state["left"] = torch.lerp(matrix @ matrix.mT, old["left"], DECAY)
                next_state["right"] = torch.lerp(matrix.mT @ matrix, old["right"], DECAY)
                matrix = _axes(next_state["left"]).mT @ matrix @ _axes(next_state["right"])
            next_state["moment"] = torch.lerp(matrix.square(), old["moment"], DECAY)
        return next_state, inside

    def _direction(
        self, param: Tensor, grad: Tensor, inside: Tensor, state: Mapping[str, Tensor], role: Role, at: Constants
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(state, dict)  # the new state, to which the moment after orthogonalising is added
        if "moment" not in state:
            return super()._direction(param, grad, inside, state, role, at)
        momentum = state["momentum"] / at.momentum_weight
        mixed = (grad + at.momentum_mix * (momentum - grad)).reshape(matrix_shape(param.shape))
        if self.kind == "soap":
            left, right = _axes(state["left"]), _axes(state["right"])
            inside = left.mT @ mixed @ right / torch.sqrt(state["moment"] / state["weight"] + TINY)
            direction = left @ inside @ right.mT
        elif self.kind in ("row", "entry"):
            direction = orthogonalise(mixed)
            square = direction.square()
            square = square.mean(1, keepdim=True) if self.kind == "row" else square
            state["moment"] = torch.lerp(square, state["moment"], DECAY)
            direction = direction / torch.sqrt(state["moment"] / state["weight"] + 1e-10)
        else:
            power = 0.5 if self.kind == "before_half" else 1.0
            direction = orthogonalise(mixed / torch.sqrt(state["moment"] / state["weight"] + TINY) ** power)
        return unit_rms(direction.reshape(param.shape)), at.step_size


def _axes(covariance: Tensor) -> Tensor:
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + TINY
    return torch.linalg.eigh(covariance / scale + 1e-7 * torch.eye(covariance.shape[-1]))[1]


VARIANTS = ("row", "entry", "before", "before_half", "soap", "rotated")


def make(kind: str, decay: float, turn_every: int = 1) -> ResidualRule:
    """The variant with the constants of `base`, and weight decay multiplied by ``decay``."""
    start = load_rule("base")
    config = {**start.config, "orthogonalised": start.config["rotated"], "rotated": []}
    if kind == "rotated":
        variant = ResidualRule(**{**start.config, "turn_every": turn_every})
    elif kind:
        variant = type("Variant", (Variant,), {"kind": kind})(**config)
    else:
        variant = ResidualRule(**config)
    names = variant.state_dict()
    variant.load_state_dict({name: value for name, value in start.state_dict().items() if name in names})
    with torch.no_grad():
        variant.constants.log_weight_decay.add_(math.log(decay))
    return variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="one or two sets of images")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--decay", nargs="+", type=float, default=[1.0], help="factors on the weight decay")
    parser.add_argument("--turn-every", nargs="+", type=int, default=[1], help="steps between turns of rotated bases")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument(
        "--against", nargs="*", default=[], choices=("adamw", "muon"), help="baselines, which take minutes"
    )
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rules = {"": make("", 1.0)}
    for kind, decay in product(arguments.variants, arguments.decay):
        for every in arguments.turn_every if kind == "rotated" else [1]:
            rules[f"{kind} {decay:g}" + (f" every {every}" if every > 1 else "")] = make(kind, decay, every)
    baselines = Baselines(seeds=arguments.seeds, shipped=False)
    results = []
    for problem in problems(arguments.data):
        if not any(part in problem.name for part in arguments.only):
            continue
        runs: dict[str, Measurement] = {
            name: run_rules([rule], problem, seeds=arguments.seeds)[0] for name, rule in rules.items()
        }
        runs |= {name: baselines(problem, name) for name in arguments.against}
        result = ProblemResult(problem.name, problem.horizon, problem.task.loss_scale, runs)
        results.append(result)
        print(problem.name, *(f"| {n} {pair([result], n, '')}" for n in rules if n), flush=True)
    for name in rules:
        words = [f"{name or 'orthogonalised'}: {pair(results, name, '')}"]
        for reference in arguments.against:
            speed = speed_up(results, name, reference)
            words.append(f"{reference} {pair(results, name, reference)}, speed {speed:.2f}")
        print(" | ".join(words))


def speed_up(results: Sequence[ProblemResult], name: str, reference: str) -> float:
    """IQM of the speed-up in steps over all problems and seeds."""
    pairs = [result.paired_runs(name, reference) for result in results]
    return float(
        iqm(torch.stack([step_speedup(runs.ours, runs.reference, runs.loss_scale) for runs in pairs]).log()).exp()
    )


def pair(results: Sequence[ProblemResult], name: str, reference: str) -> str:
    """Mean log-ratios of final losses, training / validation."""
    means = (fmean(result.log_ratio(name, reference, split) for result in results) for split in ("train", "valid"))
    return " / ".join(f"{mean:+.3f}" for mean in means)


if __name__ == "__main__":
    main()
