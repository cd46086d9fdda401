"""Run by ``test_sharding.py`` in a process of its own: steps of rules on two gloo ranks that share the parameters.

``python two_shards.py FOLDER [NUMBER ...]`` takes these entries of the catalogue, all of them without numbers, and
leaves ``FOLDER/<entry>-<rank>.pt`` with what the tests compare; plain runs are made on each rank by itself.
"""

import copy
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lightning_lopt import LearnedOptimizer
from lightning_lopt.optim import sharding

sys.path.insert(0, str(Path(__file__).parents[1] / "rules"))
from rule_catalogue import CATALOGUE

STEPS = 20
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Model(nn.Module):
    """Rows that two ranks cannot share evenly, a bias of one entry, a frozen, an unused, and a tensor left whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 5)
        self.first = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.convolution = nn.Conv1d(3, 3, 2)
        self.last = nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.tensor(0.7))  # 0-dim, which fully_shard refuses
        self.first.bias.requires_grad_(False)

    def forward(self, tokens):
        hidden = self.norm(torch.tanh(self.first(self.words(tokens))))
        hidden = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        return self.scale * self.last(torch.tanh(hidden)).squeeze(-1)


def shard(model, mesh):
    """``norm`` is sharded by itself, the rest with the root."""
    fully_shard(model.norm, mesh=mesh)
    return fully_shard(model, mesh=mesh, ignored_params={model.scale})


def batch(step):
    draws = torch.Generator().manual_seed(step)
    return torch.randint(7, (4, 6), generator=draws), torch.randn(4, 5, generator=draws, dtype=torch.float64)


def train(model, optimizer, steps, rank=None):
    """Steps on all four sequences of a batch, or on the two of a rank."""
    for step in steps:
        tokens, targets = batch(step)
        mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
        loss = (model(tokens[mine]) - targets[mine]).square().mean()
        loss.backward()
        mean = loss.detach().clone()
        if rank is not None:
            dist.all_reduce(mean)
            mean /= 2
        optimizer.step(mean)
        optimizer.zero_grad()


def values(model):
    """Whole parameters by name; a collective."""
    return {name: p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone() for name, p in
            model.named_parameters()}


def states(model, optimizer):
    """Whole state tensors by parameter and key; a collective."""
    return {
        f"{name}.{key}": x.full_tensor() if isinstance(x, DTensor) else x.clone()
        for name, p in model.named_parameters()
        for key, x in optimizer.state.get(p, {}).items()
    } | {key: value.clone() for key, value in optimizer.param_groups[0]["shared"].items()}


def fed(model, optimizer, steps):
    """Steps on gradients that are given, with some missing now and then."""
    for step in steps:
        draws = torch.Generator().manual_seed(step)
        for number, param in enumerate(model.parameters()):
            grad = torch.randn(param.shape, generator=draws)
            missing = not param.requires_grad or (step + number) % 5 == 0
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements)
            param.grad = None if missing else grad.to(param.dtype)
        optimizer.step(torch.rand((), generator=draws))
        optimizer.zero_grad()


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) if one[key].numel() else 0.0 for key in one)


def built(entry, mesh=None, dtype=torch.float64):
    model = Model().to(dtype)
    if mesh is not None:
        shard(model, mesh)
    return model, LearnedOptimizer(model, entry.rule(dtype), total_steps=STEPS)


def collectives(optimizer, run):
    """Names of the collectives of torch that ``run`` makes, by counting calls where they are made."""
    calls = []

    def counted(name, original):
        def call(*args, **settings):
            calls.append(name)
            return original(*args, **settings)

        return call

    names = ("all_gather_into_tensor", "all_reduce")
    originals = {name: getattr(sharding.dist, name) for name in names}
    try:
        for name, original in originals.items():
            setattr(sharding.dist, name, counted(name, original))
        run()
    finally:
        for name, original in originals.items():
            setattr(sharding.dist, name, original)
    return calls


def resumed(entry, mesh, rank, folder):
    """Stopped after half the steps, and continued by others from both kinds of checkpoint."""
    half = STEPS // 2
    model, optimizer = built(entry, mesh)
    train(model, optimizer, range(half), rank)
    sharded = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(sharded, checkpoint_id=folder)
    full = get_model_state_dict(model, options=FULL), get_optimizer_state_dict(model, optimizer, options=FULL)
    full = [full]
    dist.broadcast_object_list(full)  # as if all ranks read one file
    train(model, optimizer, range(half, STEPS), rank)
    reports = {"through": (values(model), states(model, optimizer))}

    model, optimizer = built(entry, mesh)
    weights = {"model": get_model_state_dict(model)}
    dcp.load(weights, checkpoint_id=folder)
    model.load_state_dict(weights["model"])
    saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(saved, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=StateDictOptions(cpu_offload=True))
    train(model, optimizer, range(half, STEPS), rank)
    reports["sharded"] = values(model), states(model, optimizer)

    model, optimizer = built(entry, mesh)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, full[0][0], options=options)
    set_optimizer_state_dict(model, optimizer, full[0][1], options=options)
    train(model, optimizer, range(half, STEPS), rank)
    reports["single file"] = values(model), states(model, optimizer)
    return reports


def report(entry, mesh, rank):
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)
        resumptions = resumed(entry, mesh, rank, folder[0])
        dist.barrier()
    alone, whole_optimizer = built(entry)
    train(alone, whole_optimizer, range(STEPS))

    plain, plain_optimizer = built(entry, dtype=torch.float32)
    cut, cut_optimizer = built(entry, mesh, torch.float32)
    fed(plain, plain_optimizer, range(STEPS - 1))
    fed(cut, cut_optimizer, range(STEPS - 1))
    calls = collectives(cut_optimizer, lambda: fed(cut, cut_optimizer, [STEPS]))
    fed(plain, plain_optimizer, [STEPS])
    kept = [(p, x) for p, state in cut_optimizer.state.items() for x in state.values() if isinstance(p, DTensor)]
    return {
        "through": resumptions["through"],
        "to one process": largest_difference(resumptions["through"][0], values(alone)),
        "moved": largest_difference(values(alone), {k: v.double() for k, v in values(Model().double()).items()}),
        "resumed": {kind: resumptions[kind] for kind in ("sharded", "single file")},
        "fed": (values(cut), states(cut, cut_optimizer)),
        "fed plain": (values(plain), states(plain, plain_optimizer)),
        "collectives": calls,
        "whole beside": [str(tuple(p.shape)) for p, x in kept if x.shape == p.shape and not isinstance(x, DTensor)],
        "kept": [
            (x.to_local().untyped_storage().nbytes(), x.to_local().nbytes) for _, x in kept if isinstance(x, DTensor)
        ],
    }


def main(rank, folder, entries):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for number in entries:
        torch.save(report(CATALOGUE[number], mesh, rank), Path(folder) / f"{number}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    chosen = [int(number) for number in sys.argv[2:]] or list(range(len(CATALOGUE)))
    torch.multiprocessing.start_processes(main, (sys.argv[1], chosen), nprocs=2, start_method="fork")
