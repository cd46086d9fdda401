"""Run by ``test_matrix.py`` in a process of its own: fits the cells of a file one after the other on two gloo ranks.

``python matrix_ranks.py FOLDER`` reads ``FOLDER/cells.json``, a list of the fields of cells, and leaves what each rank
found in the cell of number n in ``FOLDER/<n>-<rank>.pt``.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp
from lightning.fabric.utilities.port import find_free_network_port
from matrix_cells import Cell
from matrix_fits import run


def rank_main(rank: int, folder: Path, port: int) -> None:
    """One rank; Lightning takes the process group that is there, so it is set up once for all cells."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "matrix"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for number, fields in enumerate(json.loads((folder / "cells.json").read_text())):
        torch.save(run(Cell(**fields)), folder / f"{number}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(rank_main, (Path(sys.argv[1]), find_free_network_port()), nprocs=2, start_method="fork")
