"""What kind of controller is worth learning on top of `base`: with a memory or without, for each role or for all?

python examples/research/controllers.py --minutes 4

Each kind is meta-trained for the same minutes, the rest of `base` staying as it is, then measured on held-out families
beside `base`: at the end, and with the mean of θ over the second half of the outer steps. Printed are the
signal-to-noise of the meta-gradient (median over outer steps; 1 is noise alone), the speed-up over tuned AdamW (IQM)
and the mean log-ratios to `base` of the final losses, training / validation.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch
from directions import pair, speed_up
from torch import Tensor, nn

from lightning_lopt import PES, MetaLoss, MetaTrainer, ResidualRule, TaskDataModule, load_rule
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.problem_result import ProblemResult
from lightning_lopt.evaluation.runs import run_rules
from lightning_lopt.evaluation.suites import make_suite
from lightning_lopt.rules.base import ROLES
from lightning_lopt.rules.controller import Controller, Controls

TASKS = "image_mlp+tabular_classification+tabular_regression+teacher+least_squares"
PROBLEMS = ("digits-vit", "digits-resnet", "digits-deep")


class Memoryless(Controller):
    """Sees each step as if it were the first."""

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Controls, Tensor]:
        return super().forward(signals, torch.zeros_like(hidden))


class OneForEachRole(Controller):
    """As many sets of weights as there are roles; a tensor's role is the last of its signals."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.others = nn.ModuleList(Controller(*sizes) for _ in ROLES[1:])

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Controls, Tensor]:
        found = [super().forward(signals, hidden), *(other(signals, hidden) for other in self.others)]
        role = signals[:, -len(ROLES) :].mT  # one row for each
        kinds = zip(*(controls for controls, _ in found), strict=True)
        controls = Controls(*((role * torch.stack(kind)).sum(0) for kind in kinds))
        return controls, (role[..., None] * torch.stack([memory for _, memory in found])).sum(0)


KINDS = {"recurrent": Controller, "memoryless": Memoryless, "one for each role": OneForEachRole}


def with_controller(kind: str) -> ResidualRule:
    """`base` with a new controller, which alone is learned."""
    base = load_rule("base")
    rule = ResidualRule(**{**base.config, "controller": True})
    rule.load_state_dict(base.state_dict(), strict=False)
    rule.requires_grad_(False)
    old = rule.controller
    assert old is not None
    hidden, inputs = old.candidate_weight.shape
    rule.controller = KINDS[kind](inputs - hidden, hidden, rule.config["step_range"])
    return rule


class Trajectory(L.Callback):
    """θ and the signal-to-noise after each outer step."""

    def __init__(self) -> None:
        self.thetas: list[dict[str, Tensor]] = []
        self.signals: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, MetaTrainer)
        self.thetas.append({name: value.clone() for name, value in module.rule.state_dict().items()})
        self.signals.append(float(trainer.callback_metrics["gradient_snr"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of one core, for each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), help="of the suite held_out")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = [problem for problem in make_suite("held_out") if problem.name in arguments.problems]
    baselines = Baselines(seeds=arguments.seeds)
    references = []
    for problem in problems:
        runs = {"base": run_rules([load_rule("base")], problem, seeds=arguments.seeds)[0]}
        references.append(runs | {"adamw": baselines(problem, "adamw")})

    for kind in arguments.kinds:
        L.seed_everything(0)
        rule, seen = with_controller(kind), Trajectory()
        estimator = PES(50, pairs=8, sigma=0.02, meta_loss=MetaLoss("log", "both"))
        trainer = L.Trainer(
            max_time=timedelta(minutes=arguments.minutes),
            max_epochs=-1,
            accelerator="cpu",
            gradient_clip_val=1.0,
            logger=False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[seen],
        )
        module = MetaTrainer(rule, estimator, groups=2, horizons=(100, 1000), lr=3e-3, warmup_steps=10)
        trainer.fit(module, TaskDataModule(TASKS, "digits"))
        later = seen.thetas[len(seen.thetas) // 2 :]
        mean = {name: torch.stack([theta[name] for theta in later]).mean(0) for name in later[0]}
        print(f"{kind}: {len(seen.thetas)} outer steps, signal-to-noise {median(seen.signals):.2f}", flush=True)
        for when, theta in (("at the end", seen.thetas[-1]), ("mean of θ", mean)):
            rule.load_state_dict(theta)
            results = []
            for problem, reference in zip(problems, references, strict=True):
                runs = reference | {"ours": run_rules([rule], problem, seeds=arguments.seeds)[0]}
                results.append(ProblemResult(problem.name, problem.horizon, problem.task.loss_scale, runs))
            speed = speed_up(results, "ours", "adamw")
            print(f"  {when}: speed-up {speed:.2f}, to base {pair(results, 'ours', 'base')}", flush=True)


if __name__ == "__main__":
    main()
