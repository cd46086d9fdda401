"""Parameters that two processes share (FSDP2): every rule makes the steps that it makes alone, and keeps its shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_lopt

sys.path.insert(0, str(Path(__file__).parents[1] / "rules"))
from rule_catalogue import CATALOGUE

ALL = range(len(CATALOGUE))
# no state at all, eigenbases and a calibration, a recurrent state that belongs to no parameter
FAST = [
    next(n for n in ALL if str(CATALOGUE[n]).startswith(start))
    for start in ("sgd", "residual-direction=False-controller=False-orth", "velo")
]


def reports_of(folder, entries):
    """What each rank reports, by number of the entry and for ``"placements"``."""
    script = Path(__file__).with_name("two_shards.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_lopt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, folder, *map(str, entries)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)] for name in (*entries, "placements")}


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    return reports_of(tmp_path_factory.mktemp("fast"), FAST)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return reports_of(tmp_path_factory.mktemp("everything"), [n for n in ALL if n not in FAST])


@pytest.fixture(
    params=[pytest.param(n, marks=[] if n in FAST else pytest.mark.slow, id=str(CATALOGUE[n])) for n in ALL]
)
def ranks(request):
    """The reports of both ranks about one entry."""
    return request.getfixturevalue("fast" if request.param in FAST else "everything")[request.param]


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def both_equal(one, other):
    """Parameters, and states."""
    return all(equal(*pair) for pair in zip(one, other, strict=True))


def test_a_step_is_that_of_one_process(ranks):
    """Bit for bit on the same gradients; to rounding where the batch is shared."""
    for report in ranks:
        assert both_equal(report["fed"], report["fed plain"])
        assert report["to one process"] < 1e-10
        assert report["moved"] > 1e-5


def test_both_kinds_of_checkpoint_resume_bit_for_bit(ranks):
    one, other = ranks
    assert both_equal(one["through"], other["through"])
    for report in ranks:
        for kind in ("sharded", "single file"):
            assert both_equal(report["resumed"][kind], report["through"]), kind


def test_one_collective_a_step(ranks):
    """And one for the tensor that is not sharded, whose gradient nobody else reduces."""
    for report in ranks:
        assert report["collectives"] == {"_allgather_base_": 1, "allreduce_": 1}


def test_what_is_kept_is_sharded(ranks):
    """State of the shape of its parameter, and without the memory of the whole tensor."""
    for report in ranks:
        assert report["whole beside"] == []
        assert all(held == needed for held, needed in report["kept"])


def test_a_bucket_holds_all_types(fast):
    for report in fast["placements"]:
        assert len(report["types"]) == 12
        assert all(report["types"])


def test_plain_and_sharded_optimizers_take_over_from_each_other(fast):
    assert [report["crossed"] for report in fast["placements"]] == [[True] * 5] * 2


def test_state_in_bfloat16_is_rounded_as_in_one_process(fast):
    for report in fast["placements"]:
        (plain, shared), types = report["bfloat16"]
        assert equal(plain, shared)
        assert types == {torch.bfloat16}


def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(fast):
    assert [report["not finite"] for report in fast["placements"]] == [(1, 1, False)] * 2


def test_partial_gradients_are_summed(fast):
    for report in fast["placements"]:
        assert report["partial"].tolist() == [-3.0, -3.0]


def test_tensors_come_together_and_are_cut_as_torch_cuts_them(fast):
    for report in fast["placements"]:
        assert all(report["together"])
        assert report["handed through"]
        assert all(report["again"])
        partial, interleaved, uneven = report["refused"]
        assert "Partial" in partial
        assert "one Shard" in partial
        assert "not both" in interleaved
        assert "rows on this rank where even chunks have 2" in uneven


def test_a_risen_validation_loss_sets_shards_back(fast):
    for report in fast["placements"]:
        assert report["validated"] == {"set back": [[False, False, False, True, False]] * 2, "same": [True, True]}
