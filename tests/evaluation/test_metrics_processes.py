"""Metrics on two gloo processes that see different problems: the result of one process that sees all."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_metrics import ALL, contests


def share(rank, shares, address, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {}
    for name, make in ALL.items():
        metric = make()
        for problem in shares[rank]:
            metric.update(contests()[problem])
        found[name] = metric.compute()
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [((3, 0, 1), (4, 2)), ((), (0, 1, 2, 3, 4))], ids=["both", "one sees nothing"])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_processes_agree_with_one(shares, tmp_path):
    context = mp.get_context("fork")
    address = f"file://{tmp_path}/rendezvous"
    workers = [context.Process(target=share, args=(rank, shares, address, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, make in ALL.items():
        alone = make()
        for contest in contests():
            alone.update(contest)
        assert first[name] == second[name] == alone.compute()
