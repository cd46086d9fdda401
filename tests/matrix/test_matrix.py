"""The contract matrix: each cell is a real fit, and repeats the same training written as a plain loop.

So accumulation of four batches of 8 equals one batch of 32, manual equals automatic optimization, the swap equals an
optimizer of one's own, a scheduler equals its closed form, and two ranks equal one process on the whole batch.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from matrix_cells import (
    AXES,
    EPOCHS,
    NETWORKS,
    REFUSED,
    STEPS,
    WINDOWS,
    Cell,
    every_cell,
    impossible,
    pairwise_cells,
    warning,
)
from matrix_fits import run
from matrix_plain_loop import expected

import lightning_lopt

FAST = pairwise_cells()
SLOW = [cell for cell in every_cell() if cell not in FAST]
CELLS = [*FAST, *(pytest.param(cell, marks=pytest.mark.slow) for cell in SLOW)]

#: Largest distance from the plain loop, relative to the way that training went. In half precision micro-batches and
#: ranks are the same in both, and so is the rounding.
TOLERANCE = {"64-true": 1e-6, "32-true": 1e-3, "bf16-true": 1e-5, "bf16-mixed": 1e-5, "16-mixed": 1e-5}


def tolerance(cell):
    per_batch = cell.factor > 1 and (cell.loop == "manual" or cell.processes == "fsdp2")  # when ranks average gradients
    if cell.precision == "bf16-true" and cell.ranks > 1 and (per_batch or cell.network == "sparse"):
        return 0.3  # sums in bfloat16, in another order than that of the plain loop
    if cell.precision == "bf16-true" and cell.processes == "fsdp2" and cell.clip == "norm":
        return 0.02  # the norm to clip by is summed over shards in bfloat16, whose steps are 0.004 to 0.008 of a number
    return TOLERANCE[cell.precision]


@pytest.fixture(scope="session")
def on_two_ranks(request, tmp_path_factory):
    """What each rank found, by cell, of all cells that this session runs on two: few processes for all of them."""
    chosen = [item.callspec.params["cell"] for item in request.session.items if _has_ranks(item)]
    # the workers of one test run share this folder, and the first that comes makes the fits for all
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp().parent if is_worker else tmp_path_factory.mktemp("cells")
    found = {}
    for first in range(0, len(chosen), 200):
        found |= fit_on_two_ranks(chosen[first : first + 200], folder / f"cells-{first}")
    return found


def fit_on_two_ranks(cells, folder, epochs=EPOCHS):
    """What each of two processes found, by cell."""
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            _start_two_ranks(cells, folder, epochs)
            (folder / "done").touch()
    return {cell: [torch.load(folder / f"{n}-{rank}.pt") for rank in (0, 1)] for n, cell in enumerate(cells)}


def _start_two_ranks(cells, folder, epochs):
    (folder / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells]))
    package = str(Path(lightning_lopt.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("matrix_ranks.py"), folder, str(epochs)]
    limit = 120 + 2 * epochs * len(cells)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr[-3000:]


def _has_ranks(item):
    cell = getattr(item, "callspec", None) and item.callspec.params.get("cell")
    return isinstance(cell, Cell) and cell.ranks > 1


def results_of(cell, request):
    """What every rank found."""
    return [run(cell)] if cell.ranks == 1 else request.getfixturevalue("on_two_ranks")[cell]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell, request):
    results, plain = results_of(cell, request), expected(cell)
    assert [result.get("error") for result in results] == [None] * cell.ranks
    for result in results:
        assert (result["steps"], result["skipped"], result["global_step"]) == (STEPS, 0, STEPS)
        assert result["horizons"] == [STEPS] * STEPS  # planned equals made
        assert result["rates"] == pytest.approx(plain.rates, rel=1e-12)
        assert result["losses"] == pytest.approx(plain.losses, rel=tolerance(cell))
        assert distance(result["end"], plain) < tolerance(cell)
        assert all(result["end"][name].dtype == value.dtype for name, value in plain.end.items())
        state_type = torch.float64 if cell.precision == "64-true" else torch.float32
        assert {value.dtype for value in result["state"]} == {state_type}
        check_untrained(cell, result, plain)
    check_warnings(cell, results[0]["warnings"])
    assert_ranks_agree(results)


def assert_ranks_agree(results):
    """To the last bit, in parameters, state and what the rule saw."""
    for other in results[1:]:
        for name, value in results[0]["end"].items():
            assert torch.equal(value, other["end"][name]), f"ranks differ in {name}"
        assert all(torch.equal(value, same) for value, same in zip(results[0]["state"], other["state"], strict=True))
        assert other["losses"] == results[0]["losses"]


@pytest.mark.slow
def test_ranks_agree_after_500_steps(tmp_path):
    """With layers whose statistics differ by rank, and in mixed precision with accumulation."""
    epochs = -(-500 // WINDOWS)
    ddp = Cell(processes="ddp", network="batchnorm")
    cells = [ddp, replace(ddp, precision="bf16-mixed", accumulation="4", optimizer="swap", clip="norm")]
    for results in fit_on_two_ranks(cells, tmp_path, epochs).values():
        assert [result.get("error") for result in results] == [None, None]
        assert results[0]["steps"] >= 500
        assert_ranks_agree(results)


def distance(end, plain):
    """Between two ends of training, relative to how far it went from its start."""
    apart = sum(((end[name].double() - value.double()) ** 2).sum() for name, value in plain.end.items())
    way = sum(((plain.start[name].double() - value.double()) ** 2).sum() for name, value in plain.end.items())
    return float((apart / way).sqrt())


def check_untrained(cell, result, plain):
    """Parameters that are frozen or never used have not moved; frozen ones have no state."""
    still = {"frozen": "first", "unused": "unused"}.get(cell.network)
    for name, value in result["end"].items():
        if still and name.startswith(still):
            assert torch.equal(value, plain.start[name])
            begun = cell.processes == "fsdp2" and cell.network == "unused"  # sharded checkpoints need it from the start
            assert (name in result["with_state"]) == begun
        else:
            assert torch.equal(value, plain.start[name]) == (value.numel() == 0)
            assert (name in result["with_state"]) == (value.numel() > 0)


def check_warnings(cell, texts):
    """What the cell gives up is named by rank 0, and nothing of ours is said without need."""
    pattern = warning(cell)
    ours = [text for text in texts if re.search("LearnedOptimizer|total_steps|The rule", text)]
    if pattern is None:
        assert ours == []
    else:
        assert any(re.search(pattern, text) for text in ours), texts


@pytest.mark.parametrize("cell", REFUSED, ids=str)
def test_refused(cell, request):
    """In one sentence, before anything has moved."""
    for result in results_of(cell, request):
        assert re.search(REFUSED[cell], result.get("error", "it trained"))


def test_the_fast_part_holds_every_pair():
    """Of two values of two axes that some cell may hold."""
    axes = {**AXES, "network": NETWORKS}
    missing = []
    for (one, values), (other, others) in itertools.combinations(axes.items(), 2):
        for a, b in itertools.product(values, others):
            may = impossible(Cell(**{one: a, other: b})) is None
            if may and not any((getattr(cell, one), getattr(cell, other)) == (a, b) for cell in FAST):
                missing.append((a, b))
    assert missing == []
    assert len(FAST) <= 60
