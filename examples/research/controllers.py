"""Compare kinds of learned controllers for `base`: with or without memory, for each role or for all roles.

python examples/research/controllers.py --minutes 4
python examples/research/controllers.py --minutes 5 --kinds recurrent --hidden 4 --accelerator gpu --groups 16 \
    --pairs 64 --estimator nres --truncation 100 --sigma 0.1 --lr 0.01 --last 0.5 --horizons 200 3000 \
    --out controllers --problems
python examples/research/controllers.py --minutes 60 --kinds blind --hidden 4 --tasks three --compile --groups 6 \
    --pairs 32 --estimator nres --sigma 0.1 --lr 0.01 --last 0.5 --horizons 200 1500 --out controllers --problems

Each kind is meta-trained for the same time, while other constants of `base` do not change. It is then compared with
`base` on held-out families: with the last θ, and with the mean of θ over the second half of the outer steps. The script
prints the signal-to-noise ratio of the meta-gradient (median over outer steps; 1 is pure noise), the speed-up over
tuned AdamW (IQM) and the mean log-ratios of the final losses to those of `base`, training / validation. The second
command, for a GPU, and the third, for one CPU thread, make no measurement. They write the rule after each 25 outer
steps, and the mean rule, to folders, which `constants.py --rule` measures.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch
from directions import pair, speed_up
from torch import Tensor, nn

from lightning_lopt import NRES, PES, MetaLoss, MetaTrainer, ResidualRule, TaskDataModule, load_rule, save_rule
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.evaluation.results import ProblemResult
from lightning_lopt.evaluation.suites import make_suite
from lightning_lopt.rules.base import ROLES
from lightning_lopt.rules.residual_parts.controller import Controller, Controls
from lightning_lopt.tasks import ImageCNN, ImageMLP
from lightning_lopt.tasks.text import resolve_texts

TASKS = "image_mlp+tabular_classification+tabular_regression+teacher+least_squares"
THREE = "three"  # a value of --tasks: three small networks, since each network is compiled for some minutes
ALL_TASKS = f"{TASKS}+image_cnn+image_mixer+image_autoencoder+char_transformer"  # for a GPU
PROBLEMS = ("digits-vit", "digits-resnet", "digits-deep")


class Memoryless(Controller):
    """A controller without memory: its state is 0 at each step."""

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Controls, Tensor]:
        return super().forward(signals, torch.zeros_like(hidden))


class OneForEachRole(Controller):
    """A controller with separate weights for each role; the last signals are the one-hot role of the tensor."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.others = nn.ModuleList(Controller(*sizes) for _ in ROLES[1:])

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Controls, Tensor]:
        outputs = [super().forward(signals, hidden), *(controller(signals, hidden) for controller in self.others)]
        role = signals[:, -len(ROLES) :].mT  # one row for each role
        kinds = zip(*(controls for controls, _ in outputs), strict=True)
        controls = Controls(*((role * torch.stack(kind)).sum(0) for kind in kinds))
        return controls, (role[..., None] * torch.stack([memory for _, memory in outputs])).sum(0)


class Blind(Controller):
    """A controller that does not read the loss, so that a constant in the loss changes nothing."""

    LOSS = slice(3, 5)  # the signals that depend on the loss

    def forward(self, signals: Tensor, hidden: Tensor) -> tuple[Controls, Tensor]:
        is_read = torch.ones_like(signals[0])
        is_read[self.LOSS] = 0
        return super().forward(signals * is_read, hidden)

    @torch.no_grad()
    def as_plain(self) -> None:
        """Set the weights of the loss to 0, so that a :class:`Controller` with the same weights does the same."""
        for weight in (self.gate_weight, self.candidate_weight):
            weight[:, self.LOSS] = 0


KINDS = {"recurrent": Controller, "memoryless": Memoryless, "one for each role": OneForEachRole, "blind": Blind}


def with_controller(kind: str, hidden: int) -> ResidualRule:
    """`base` with a new controller of the given hidden size; only the controller is learned."""
    base = load_rule("base")
    rule = ResidualRule(**{**base.config, "controller": True, "controller_hidden": hidden})
    rule.load_state_dict(base.state_dict(), strict=False)
    rule.requires_grad_(False)
    controller = rule.controller
    assert controller is not None
    hidden, inputs = controller.candidate_weight.shape
    rule.controller = KINDS[kind](inputs - hidden, hidden, rule.config["step_range"])
    return rule


def data_module(tasks: str, accelerator: str) -> TaskDataModule:
    """The tasks of meta-training."""
    if tasks == THREE:
        options = {"variety": False, "init_scales": (0.5, 2.0)}
        wide = ImageMLP("digits", depths=(1,), widths=(32,), activations=("relu",), batch_sizes=(64,), **options)
        deep = ImageMLP("digits", depths=(3,), widths=(32,), activations=("tanh",), batch_sizes=(32,), **options)
        shape = {"depths": (2,), "channels": (8,), "downsamplings": ("max",), "readouts": ("flatten",)}
        cnn = ImageCNN("digits", **shape, activations=("relu",), batch_sizes=(32,), **options)
        return TaskDataModule([wide, deep, cnn])
    if accelerator == "gpu":
        return TaskDataModule(ALL_TASKS, "digits", resolve_texts(None)[1:])  # the first text belongs to the suites
    return TaskDataModule(TASKS, "digits")


class Trajectory(L.Callback):
    """Records θ and the signal-to-noise ratio after each outer step."""

    def __init__(self) -> None:
        self.thetas: list[dict[str, Tensor]] = []
        self.signals: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, MetaTrainer)
        self.thetas.append({name: value.cpu() for name, value in module.rule.state_dict().items()})
        self.signals.append(float(trainer.callback_metrics["gradient_snr"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="minutes of one core for each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), help="problems of the suite held_out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=16, help="size of the state of a controller")
    parser.add_argument("--estimator", choices=("pes", "nres"), default="pes")
    parser.add_argument("--truncation", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--last", type=float, default=1.0, help="last share of the horizon, which counts")
    parser.add_argument("--horizons", type=int, nargs=2, default=(100, 1000))
    parser.add_argument("--tasks", choices=("all", THREE), default="all")
    parser.add_argument("--compile", action="store_true", help="compile inner steps")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", default=None, help="folder for the rules")
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
        rule, trajectory = with_controller(kind, arguments.hidden), Trajectory()
        estimator = {"pes": PES, "nres": NRES}[arguments.estimator](
            arguments.truncation,
            pairs=arguments.pairs,
            sigma=arguments.sigma,
            meta_loss=MetaLoss("log", "both", arguments.last),
        )
        trainer = L.Trainer(
            max_time=timedelta(minutes=arguments.minutes),
            max_epochs=-1,
            accelerator=arguments.accelerator,
            devices=1,
            gradient_clip_val=1.0,
            logger=False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[trajectory],
        )
        module = MetaTrainer(
            rule,
            estimator,
            groups=arguments.groups,
            horizons=tuple(arguments.horizons),
            lr=arguments.lr,
            warmup_steps=10,
            compile=arguments.compile,
        )
        trainer.fit(module, data_module(arguments.tasks, arguments.accelerator))
        rule.cpu()
        thetas = trajectory.thetas
        second_half = thetas[len(thetas) // 2 :]
        mean = {name: torch.stack([theta[name] for theta in second_half]).mean(0) for name in second_half[0]}
        print(f"{kind}: {len(thetas)} outer steps, signal-to-noise {median(trajectory.signals):.2f}", flush=True)
        if arguments.out is not None:
            snapshots = {f"{step:04d}": thetas[step - 1] for step in range(25, len(thetas) + 1, 25)}
            for name, theta in (snapshots | {"mean": mean, "end": thetas[-1]}).items():
                rule.load_state_dict(theta)
                if isinstance(rule.controller, Blind):
                    rule.controller.as_plain()
                save_rule(
                    rule, Path(arguments.out) / f"{kind.replace(' ', '_')}_{name}", meta_training=module.trained_on
                )
        for when, theta in (("at the end", thetas[-1]), ("mean of θ", mean)):
            if not problems:
                break
            rule.load_state_dict(theta)
            results = []
            for problem, reference in zip(problems, references, strict=True):
                runs = reference | {"ours": run_rules([rule], problem, seeds=arguments.seeds)[0]}
                results.append(ProblemResult(problem.name, problem.horizon, problem.task.loss_scale, runs))
            speed = speed_up(results, "ours", "adamw")
            print(f"  {when}: speed-up {speed:.2f}, to base {pair(results, 'ours', 'base')}", flush=True)


if __name__ == "__main__":
    main()
