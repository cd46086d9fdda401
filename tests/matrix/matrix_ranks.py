"""Run by ``test_matrix.py`` in a process of its own: fits the cells of a file one after the other on two gloo ranks.

``python matrix_ranks.py FOLDER EPOCHS`` reads ``FOLDER/cells.json``, a list of the fields of cells, and leaves what
each rank found in the cell of number n in ``FOLDER/<n>-<rank>.pt``.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp
from matrix_cells import Cell
from matrix_fits import run


def rank_main(rank: int, folder: Path, epochs: int) -> None:
    """One rank; Lightning takes the process group that is there, so it is set up once for all cells."""
    torch.set_num_threads(1)
    as_under_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {"TORCHELASTIC_RUN_ID": "matrix"} | {name: str(value) for name, value in as_under_torchrun.items()}
    torch.distributed.init_process_group("gloo", f"file://{folder / 'ranks'}", rank=rank, world_size=2)
    for number, fields in enumerate(json.loads((folder / "cells.json").read_text())):
        torch.save(run(Cell(**fields), epochs), folder / f"{number}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(rank_main, (Path(sys.argv[1]), int(sys.argv[2])), nprocs=2, start_method="fork")
