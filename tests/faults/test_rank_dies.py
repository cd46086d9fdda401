"""One of two ranks under ``torchrun`` is killed: the run ends, and goes on from its last checkpoint."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lightning_lopt

STEPS, DIE_AT = 12, 7


def torchrun(*arguments):
    script = Path(__file__).with_name("two_ranks_one_dies.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_lopt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )


def checkpoint(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_the_other_ends_within_a_minute_and_the_run_resumes(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    done = torchrun(straight, STEPS)
    assert done.returncode == 0, done.stderr[-3000:]
    dead = torchrun(killed, STEPS, DIE_AT)
    assert dead.returncode != 0
    assert time.time() - float((killed / "died").read_text()) < 60
    assert "SIGKILL" in dead.stderr or "exitcode  : -9" in dead.stderr, dead.stderr[-3000:]
    assert checkpoint(killed)["global_step"] == DIE_AT
    resumed = torchrun(killed, STEPS)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    one, other = checkpoint(straight), checkpoint(killed)
    assert one["global_step"] == other["global_step"] == STEPS
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
