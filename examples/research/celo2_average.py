"""Average θ of Celo2 over checkpoints of its meta-training, and save the average as a rule.

python examples/research/celo2_average.py --checkpoints runs/celo2_cpu/step=*.ckpt --theta mean_theta.safetensors
python examples/research/celo2_average.py --theta examples/research/celo2_training/mean_theta.safetensors \
    --out lightning_lopt/pretrained/celo2

θ of a single outer step is noisy, so the mean of many is better (entry 28 of LOG.md). With `--checkpoints`, the mean is
written to the file of `--theta`; for this, let `ModelCheckpoint` keep all checkpoints (`save_top_k: -1` in
examples/configs/celo2_cpu.yaml). With `--out`, the rule is saved, with the card that is in that folder, if any. Its
step size and its schedule were chosen on other problems than those of the suites (entry 48).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_lopt import Celo2Rule, save_rule

SETTINGS = {"adam_roles": ["vector"], "adam_betas": [0.9, 0.95]}  # those of meta-training
STEP_MULT, SCHEDULE = 2e-3, "warmup_cosine"
DATA = ["digits", "mnist10k", "cifar10_16x16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[], help="checkpoints of MetaTrainer to average")
    parser.add_argument("--theta", type=Path, required=True, help="file with the mean of θ, .safetensors")
    parser.add_argument("--out", type=Path, help="folder of the rule to write")
    arguments = parser.parse_args()
    if arguments.checkpoints:
        write_mean(arguments.checkpoints, arguments.theta)
    if arguments.out is not None:
        print(save(arguments.theta, arguments.out))


def write_mean(checkpoints: Sequence[Path], path: Path) -> None:
    """Write the mean of θ, with the number of checkpoints and the first and the last outer step."""
    thetas: list[dict[str, Tensor]] = []
    steps = []
    for checkpoint in checkpoints:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        thetas.append({key: value for key, value in content["state_dict"].items() if key.startswith("rule.")})
        steps.append(int(content["global_step"]))
    mean = {key: torch.stack([theta[key].double() for theta in thetas]).mean(0).to(thetas[0][key]) for key in thetas[0]}
    record = {"snapshots": len(steps), "first_step": min(steps), "last_step": max(steps)}
    save_file(mean, path, metadata={key: str(value) for key, value in record.items()})


def save(theta: Path, folder: Path) -> Path:
    """Save the rule with the mean of θ in a folder; a card that is there stays."""
    with safe_open(theta, "pt") as file:
        record = file.metadata()
    rule = Celo2Rule(**SETTINGS, step_mult=STEP_MULT, schedule=SCHEDULE)
    rule.load_state_dict({key.removeprefix("rule."): value for key, value in load_file(theta).items()})
    meta_training = {
        "horizons": [100, 2000],
        "outer_steps": int(record["last_step"]),
        "mean_of": {key: int(record[key]) for key in ("snapshots", "first_step", "last_step")},
        "families": ["celo4"],
        "data": DATA,
    }
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else None
    return save_rule(rule, folder, card=text, meta_training=meta_training)


if __name__ == "__main__":
    main()
