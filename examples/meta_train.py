"""Meta-train a ResidualRule, choose among its checkpoints on held-out tasks, and export the best.

    python examples/meta_train.py --steps 100 --out my_rule            # a few minutes on two cores
    python examples/meta_train.py --steps 100 --out my_rule --resume   # continue from the last checkpoint

The command that made the embedded ``base`` is in its card (``lightning_lopt/pretrained/base/README.md``).
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":
    print("loading PyTorch and Lightning", file=sys.stderr, flush=True)  # loading takes seconds

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_lopt import (
    NRES,
    PES,
    Celo2BaseRule,
    FullES,
    MetaLoss,
    MetaTrainer,
    MetaValidation,
    ResidualRule,
    TaskDataModule,
    load_rule,
    save_rule,
)
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.suites import make_suite
from lightning_lopt.io import Card
from lightning_lopt.meta.outer_progress import OuterProgress
from lightning_lopt.tasks.mixtures import MIXTURES, TEXT_FAMILIES
from lightning_lopt.tasks.text import resolve_texts

PARTS = ("constants", "calibration", "direction", "controller")


def residual_rule(arguments: argparse.Namespace) -> ResidualRule:
    """The rule of which some parts are learned."""
    rule = ResidualRule(
        direction="direction" in arguments.learn,
        controller="controller" in arguments.learn,
        orthogonalised=arguments.orthogonalised,
        rotated=arguments.rotated,
        step_size=arguments.step_size,
        weight_decay=arguments.weight_decay,
        calibrated=arguments.calibrated or "calibration" in arguments.learn,
        horizon_power=arguments.horizon_power,
        turn_every=arguments.turn_every,
    )
    if arguments.start is not None:
        rule.load_state_dict(load_rule(arguments.start).state_dict(), strict=False)
    rule.constants.requires_grad_("constants" in arguments.learn)
    if rule.calibration is not None:
        rule.calibration.requires_grad_("calibration" in arguments.learn)
    return rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="my_rule", help="folder of the exported rule; checkpoints go to OUT_training")
    parser.add_argument("--steps", type=int, default=200, help="total number of outer steps")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time, before --steps if needed")
    parser.add_argument("--tasks", default="image", help="task families, joined by +")
    parser.add_argument("--data", default="digits", help="digits, an npz file, or a folder of IDX files")
    parser.add_argument("--rule", choices=("residual", "celo2"), default="residual", help="celo2 learns from random θ")
    parser.add_argument("--estimator", choices=("pes", "nres", "full_es"), default="pes")
    parser.add_argument("--learn", nargs="+", choices=PARTS, default=["constants"])
    parser.add_argument("--calibrated", action="store_true", help="add a calibration, even if it is not learned")
    parser.add_argument("--orthogonalised", nargs="*", default=["matrix"], help="roles of such tensors")
    parser.add_argument("--rotated", nargs="*", default=[], help="roles of such tensors")
    parser.add_argument("--turn-every", type=int, default=1, help="steps between turns of the rotated roles' bases")
    parser.add_argument("--meta-loss", choices=("linear", "log"), default="log", help="scale of the meta-loss")
    parser.add_argument("--split", choices=("train", "valid", "both"), default="both", help="batches of the meta-loss")
    parser.add_argument("--last", type=float, default=1.0, help="last share of the horizon, which counts")
    parser.add_argument("--step-size", type=float, default=0.02, help="initial constant")
    parser.add_argument("--weight-decay", type=float, default=1e-3, help="initial constant")
    parser.add_argument("--horizon-power", type=float, default=None, help="initial constant; no power by default")
    parser.add_argument("--start", default=None, help="embedded rule or folder, from which to take initial θ")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--truncation", type=int, default=25)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--horizons", type=int, nargs=2, default=(60, 1000))
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=10, help="outer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--validate-every", type=int, default=50, help="outer steps between two measurements; 0 for no measurement"
    )
    parser.add_argument("--suite", default="images", help="held-out problems")
    parser.add_argument(
        "--horizon-factors", type=float, nargs="*", default=[], help="also validate on runs of so many times the steps"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rule = Celo2BaseRule() if arguments.rule == "celo2" else residual_rule(arguments)
    meta_loss = MetaLoss(arguments.meta_loss, arguments.split, arguments.last)
    settings = {"pairs": arguments.pairs, "sigma": arguments.sigma, "meta_loss": meta_loss}
    truncated = {"pes": PES, "nres": NRES}
    estimator = (
        truncated[arguments.estimator](arguments.truncation, **settings)
        if arguments.estimator in truncated
        else FullES(**settings)
    )
    module = MetaTrainer(
        rule,
        estimator,
        groups=arguments.groups,
        horizons=tuple(arguments.horizons),
        lr=arguments.lr,
        warmup_steps=arguments.warmup,
        seed=arguments.seed,
    )
    folder = Path(f"{arguments.out}_training")
    validation = MetaValidation(
        make_suite(arguments.suite),
        arguments.out,
        every_n_steps=max(1, arguments.validate_every),
        baselines=Baselines(folder / "baselines.json"),
        horizon_factors=arguments.horizon_factors,
    )
    trainer = L.Trainer(
        max_steps=arguments.steps,
        max_time=None if arguments.minutes is None else timedelta(minutes=arguments.minutes),
        accelerator="cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        enable_model_summary=False,
        logger=CSVLogger(folder, name="log"),  # each start has a separate version
        callbacks=[
            ModelCheckpoint(
                folder,
                filename="{step}",
                every_n_train_steps=25,
                save_top_k=-1,
                save_last=True,
                enable_version_counter=False,  # last.ckpt is always the last one, even in a moved folder
            ),
            OuterProgress(),
            *([validation] if arguments.validate_every else []),
        ],
    )
    last = folder / "last.ckpt"
    if arguments.resume and not last.is_file():
        parser.error(f"--resume found no checkpoint {last}; start without it.")
    names = {family for name in arguments.tasks.split("+") for family in MIXTURES.get(name, (name,))}
    text = resolve_texts(None)[1:] if names & TEXT_FAMILIES.keys() else None  # the first text belongs to the suites
    tasks = TaskDataModule(arguments.tasks, arguments.data, text)
    trainer.fit(module, tasks, ckpt_path=last if arguments.resume else None)

    options = " ".join(
        f"--{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in vars(arguments).items()
        if key not in ("resume", "out")
    )
    best, steps = validation.best, trainer.global_step
    chosen = f"outer step {steps}, the last"
    if not arguments.validate_every:
        save_rule(rule, arguments.out)
    elif best is None:
        chosen, steps = "the rule before meta-training, since no checkpoint was better", 0
    else:
        steps = int(best["step"])
        chosen = f"outer step {steps}, by the held-out suite {arguments.suite!r}"
    card = Card(
        f"{type(rule).__name__}, meta-trained on {arguments.tasks}",
        f"Chosen: {chosen}.",
        recipe=f"```bash\npython examples/meta_train.py --out {Path(arguments.out).name} {options}\n```",
        tasks=f"families {arguments.tasks} on {arguments.data}, horizons {tuple(arguments.horizons)}",
    )
    record = {"outer_steps": steps, "meta_validation": validation.history}
    record |= module.trained_on | {"chosen_on": [problem.name for problem in validation.problems]}
    save_rule(load_rule(arguments.out), arguments.out, card=card, meta_training=record | estimator.config)
    print(f"exported to {arguments.out} ({chosen}); use it with LearnedOptimizer(model, {arguments.out!r})")


if __name__ == "__main__":
    main()
