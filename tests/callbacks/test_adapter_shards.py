"""FSDP2 in a Trainer: two processes that share the parameters train as one, and resume from either checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small_fits import BATCHES

import lightning_lopt

pytestmark = pytest.mark.slow  # half a minute of processes; tests/matrix trains on shards in every run

KINDS = ["single", "directory"]
KEY = "lightning_lopt_trained_parameters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the fits have left checkpoints and reports."""
    folder = tmp_path_factory.mktemp("shards")
    script = Path(__file__).with_name("two_shards_fits.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_lopt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, folder], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_same_end(one, other):
    for part in ("parameters", "state", "shared"):
        assert equal(one[part], other[part]), part
    assert one["steps"] == other["steps"]


def ends(folder, name):
    """The reports of both ranks, which have to agree."""
    one, other = (torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1))
    assert_same_end(one, other)
    return one


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_on_shards_is_one_of_a_single_process(folder, kind):
    plain, shards = torch.load(folder / "plain-0.pt"), ends(folder, kind)
    assert shards["steps"] == plain["steps"] == (2 * BATCHES, 0, 2 * BATCHES)
    for part in ("parameters", "shared"):
        torch.testing.assert_close(shards[part], plain[part], rtol=0, atol=1e-6)
    trained = [name for name in plain["state"] if not name.startswith("unused")]  # whose state waits for a gradient
    torch.testing.assert_close({n: shards["state"][n] for n in trained}, plain["state"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("resumed", "straight"), [("{}-resumed", "{}"), ("{}-further", "{}-longer")])
def test_resume_is_no_stop(folder, kind, resumed, straight):
    """From the middle of a fit, and from its end, where the model is at the average."""
    assert_same_end(ends(folder, resumed.format(kind)), ends(folder, straight.format(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_base_resumes_with_a_horizon_that_has_changed(folder, kind):
    through, resumed = ends(folder, f"base-{kind}-through"), ends(folder, f"base-{kind}-resumed")
    assert through["steps"] == (3 * BATCHES, 0, 3 * BATCHES)
    assert through["schedule"][0] == BATCHES
    assert torch.equal(resumed["schedule"], through["schedule"])
    assert_same_end(resumed, through)


def test_a_single_file_has_both_versions_whole(folder):
    saved = torch.load(folder / f"single-step={BATCHES}.ckpt", weights_only=True)
    for rank in (0, 1):
        versions = torch.load(folder / f"single-versions-{BATCHES}-{rank}.pt")
        assert equal({**versions["trained"], **versions["evaluation"]}, saved["state_dict"])
        assert equal({name: versions["trained"][name] for name in versions["evaluation"]}, saved[KEY])
        assert not torch.equal(saved["state_dict"]["net.0.weight"], saved[KEY]["net.0.weight"])
    end = torch.load(folder / "single-end.ckpt", weights_only=True)
    assert equal(end["state_dict"], ends(folder, "single")["parameters"])
    assert torch.load(folder / "single-warnings-0.pt") == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("file", [f"directory-step={BATCHES}.ckpt", "directory-end.ckpt"])
def test_a_directory_has_what_training_goes_on_with_and_says_so(folder, file):
    versions = torch.load(folder / f"directory-versions-{BATCHES if 'step' in file else 2 * BATCHES}-1.pt")
    saved = {name: torch.zeros_like(value) for name, value in versions["trained"].items()}
    dcp.load({"state_dict": saved}, checkpoint_id=folder / file, no_dist=True)
    assert equal(saved, versions["trained"])
    assert KEY not in torch.load(folder / file / "meta.pt", weights_only=True)
    for rank in (0, 1):
        (warning,) = torch.load(folder / f"directory-warnings-{rank}.pt")
        assert "save_distributed_checkpoint=False" in warning


def test_a_single_file_goes_on_in_one_process(folder):
    there, here = (torch.load(folder / f"plain{part}-0.pt") for part in ("", "-resumed"))
    torch.testing.assert_close(here["parameters"], there["parameters"], rtol=0, atol=1e-6)
    assert here["steps"] == there["steps"]
