"""Run by ``test_sharding.py`` in a process of its own: steps of rules on two gloo ranks that share the parameters.

``python two_shards.py FOLDER [NUMBER ...]`` takes these entries of the catalogue, all of them without numbers, and
leaves ``FOLDER/<entry>-<rank>.pt`` with what the tests compare, and ``FOLDER/placements-<rank>.pt``. Plain runs are
made on each rank by itself.
"""

import os
import sys
import tempfile
from collections import Counter
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
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, ScheduleFreeAdamRule, SGDRule
from lightning_lopt.optim.sharding import cut_like, gathered

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
    return {
        name: p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone()
        for name, p in model.named_parameters()
    }


def states(model, optimizer):
    """Whole state tensors by parameter and key; a collective."""
    return {
        f"{name}.{key}": x.full_tensor() if isinstance(x, DTensor) else x.clone()
        for name, p in model.named_parameters()
        for key, x in optimizer.state.get(p, {}).items()
    } | {key: value.clone() for key, value in optimizer.param_groups[0]["shared"].items()}


def give(model, step):
    """Gradients that are made up, the same on all ranks, some of them missing."""
    draws = torch.Generator().manual_seed(step)
    for number, param in enumerate(model.parameters()):
        grad = torch.randn(param.shape, generator=draws).to(param.dtype)
        missing = not param.requires_grad or (step + number) % 5 == 0
        if isinstance(param, DTensor):
            grad = distribute_tensor(grad, param.device_mesh, param.placements)
        param.grad = None if missing else grad
    return torch.rand((), generator=draws)


def fed(entry, mesh=None):
    """Twenty steps on given gradients: model, optimizer, and the collectives of the last step."""
    model, optimizer = built(entry, mesh, torch.float32)
    if mesh is not None:
        get_optimizer_state_dict(model, optimizer)  # a checkpoint before the first step changes nothing
    for step in range(STEPS):
        loss = give(model, step)
        with Collectives() as seen:
            optimizer.step(loss)
    return model, optimizer, dict(seen.count)


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) if one[key].numel() else 0.0 for key in one)


def built(entry, mesh=None, dtype=torch.float64):
    model = Model().to(dtype)
    if mesh is not None:
        shard(model, mesh)
    return model, LearnedOptimizer(model, entry.rule(dtype), total_steps=STEPS)


class Collectives(TorchDispatchMode):
    """Counts the collectives that are dispatched, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.count[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def resumed(entry, mesh, rank, folder):
    """Stopped after half the steps, and continued by others from both kinds of checkpoint."""
    half = STEPS // 2
    model, optimizer = built(entry, mesh)
    train(model, optimizer, range(half), rank)
    sharded = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(sharded, checkpoint_id=folder)
    full = get_model_state_dict(model, options=FULL), get_optimizer_state_dict(model, optimizer, options=FULL)
    if rank == 0:
        torch.save(full, folder / "single.pt")
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
    weights, saved = torch.load(folder / "single.pt")
    set_model_state_dict(model, weights, options=options)
    set_optimizer_state_dict(model, optimizer, saved, options=options)
    train(model, optimizer, range(half, STEPS), rank)
    reports["single file"] = values(model), states(model, optimizer)
    return reports


def report(entry, mesh, rank):
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)
        resumptions = resumed(entry, mesh, rank, Path(folder[0]))
        dist.barrier()
    alone, whole_optimizer = built(entry)
    train(alone, whole_optimizer, range(STEPS))

    plain, plain_optimizer, _ = fed(entry)
    cut, cut_optimizer, collectives = fed(entry, mesh)
    kept = [(p, x) for p, state in cut_optimizer.state.items() for x in state.values() if isinstance(p, DTensor)]
    return {
        "through": resumptions["through"],
        "to one process": largest_difference(resumptions["through"][0], values(alone)),
        "moved": largest_difference(values(alone), {k: v.double() for k, v in values(Model().double()).items()}),
        "resumed": {kind: resumptions[kind] for kind in ("sharded", "single file")},
        "fed": (values(cut), states(cut, cut_optimizer)),
        "fed plain": (values(plain), states(plain, plain_optimizer)),
        "collectives": collectives,
        "whole beside": [str(tuple(p.shape)) for p, x in kept if x.shape == p.shape and not isinstance(x, DTensor)],
        "kept": [
            (x.to_local().untyped_storage().nbytes(), x.to_local().nbytes) for _, x in kept if isinstance(x, DTensor)
        ],
    }


def placements():
    """Shapes and placements with whether they come together and are cut again as torch does, and what is refused."""
    line, grid, column = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2)), init_device_mesh("cpu", (2, 1))
    cases = [
        (shape, mesh, where)
        for shape in [(5, 3), (1, 3), (4, 2), (3, 4, 2), (2, 0), (0, 2)]
        for mesh, where in [
            (line, [Shard(0)]),
            (line, [Shard(1)]),
            (line, [Shard(-1)]),
            (line, [Replicate()]),
            (grid, [Replicate(), Shard(0)]),
            (column, [Shard(1), Replicate()]),
            (grid, [Shard(0), Shard(1)]),
        ]
    ] + [((1,), line, [Shard(0)]), ((), line, [Replicate()])]
    types = [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64]
    given, cut = [], []
    for number, (shape, mesh, where) in enumerate(cases):
        x = 10 * torch.randn(shape, generator=torch.Generator().manual_seed(number))
        given.append(x.to(types[number % len(types)]))
        cut.append(distribute_tensor(given[-1], mesh, where))
    together = gathered({"cut": cut, "plain": given[0]})
    again = [cut_like(x, shard) for x, shard in zip(together["cut"], cut, strict=True)]
    refused = []
    for where in (Partial(), _StridedShard(0, split_factor=2)):
        param = DTensor.from_local(torch.ones(2, 2), line, [where])
        refused.append(sentence(lambda param=param: LearnedOptimizer([nn.Parameter(param)], "base")))
    uneven = DTensor.from_local(torch.ones(1 + 2 * dist.get_rank(), 2), line, [Shard(0)], shape=(4, 2), stride=(2, 1))
    refused.append(sentence(lambda: LearnedOptimizer([nn.Parameter(uneven)], "base")))
    return {
        "together": [same(*pair) for pair in zip(together["cut"], given, strict=True)],
        "handed through": together["plain"] is given[0],
        "again": [
            x.placements == shard.placements and x.shape == shard.shape and same(x.to_local(), shard.to_local())
            for x, shard in zip(again, cut, strict=True)
        ],
        "refused": refused,
        "types": three_types(),
        "crossed": crossed(),
        "bfloat16": in_bfloat16(),
        "not finite": not_finite_on_one_rank(),
        "partial": partial_gradient(),
        "validated": set_back_alike(),
    }


def set_back(mesh=None):
    """Parameters and state of a run whose validation loss rises, with the parameters at its lowest value."""
    torch.manual_seed(0)
    model = Model().float()
    if mesh is not None:
        shard(model, mesh)
    rule = ResidualRule(direction=False, controller=False, calibrated=True, reads_validation=True)
    optimizer, best, was_set_back = LearnedOptimizer(model, rule, total_steps=STEPS), {}, []
    for step, loss in enumerate([2.0, 1.0, 1.9, 1.8, 0.9]):
        optimizer.step(give(model, step))
        was_set_back.append(optimizer.validated(loss))
        if step == 1:
            best = values(model)
        if step == 3:
            assert all(torch.equal(best[name], x) for name, x in values(model).items())
    return was_set_back, values(model), states(model, optimizer)


def set_back_alike():
    (shards_back, *shards), (whole_back, *whole) = set_back(init_device_mesh("cpu", (2,))), set_back()
    same_values = [
        all(torch.equal(one[key], other[key]) for key in one) for one, other in zip(shards, whole, strict=True)
    ]
    return {"set back": [shards_back, whole_back], "same": same_values}


def three_types():
    """Five steps on parameters of three types at once: on shards, and on whole tensors."""
    ends = []
    for mesh in (init_device_mesh("cpu", (2,)), None):
        params = []
        for dtype in (torch.bfloat16, torch.float64, torch.complex64):
            x = torch.randn(3, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
            params.append(nn.Parameter(x if mesh is None else distribute_tensor(x, mesh, [Shard(0)])))
        optimizer = LearnedOptimizer(params, AdamRule(lr=0.1))
        for seed in range(5):
            for param in params:
                grad = torch.randn(3, 2, dtype=param.dtype, generator=torch.Generator().manual_seed(seed))
                param.grad = grad if mesh is None else distribute_tensor(grad, mesh, [Shard(0)])
            optimizer.step()
        states = [gathered(x) for state in optimizer.state.values() for x in state.values()]
        ends.append([gathered(param.detach()) for param in params] + states)
    return [same(*pair) for pair in zip(*ends, strict=True)]


def crossed():
    """States that a plain and a sharded optimizer take over from each other: whether both go on as before."""
    mesh = init_device_mesh("cpu", (2,))

    def fresh(sharded):
        x = torch.arange(6.0).view(3, 2)
        param = nn.Parameter(distribute_tensor(x, mesh, [Shard(0)]) if sharded else x)
        return param, LearnedOptimizer([param], ScheduleFreeAdamRule(lr=0.1, warmup=0.0))

    def steps(param, optimizer, seeds):
        for seed in seeds:
            grad = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))
            param.grad = distribute_tensor(grad, mesh, [Shard(0)]) if isinstance(param, DTensor) else grad
            optimizer.step()
        return gathered(param.detach()).clone()

    ends = []
    for sharded in (False, True):
        param, optimizer = fresh(sharded)
        middle = steps(param, optimizer, range(3))
        other, its = fresh(not sharded)
        its.load_state_dict(optimizer.state_dict())
        with torch.no_grad():
            other.copy_(middle if sharded else distribute_tensor(middle, mesh, [Shard(0)]))
        ends += [steps(param, optimizer, range(3, 6)), steps(other, its, range(3, 6))]
        ends += [gathered(its.evaluation_params()[other])]
    return [same(end, ends[0]) for end in ends[:2] + ends[3:5]] + [same(ends[2], ends[5])]


def in_bfloat16():
    """State in bfloat16 of whole and of shared parameters, and once more after a checkpoint: the parameters at the end
    and the types of the state."""
    mesh = init_device_mesh("cpu", (2,))
    ends, types = [], set()
    for sharded in (False, True):
        model = Model()
        if sharded:
            shard(model, mesh)
        optimizer = LearnedOptimizer(model, AdamRule(0.1), total_steps=9, state_dtype=torch.bfloat16)
        for step in range(9):
            if step == 5:
                saved = optimizer.state_dict()
                optimizer = LearnedOptimizer(model, AdamRule(0.1), total_steps=9, state_dtype=torch.bfloat16)
                optimizer.load_state_dict(saved)
            optimizer.step(give(model, step))
        ends.append(values(model))
        types |= {x.dtype for state in optimizer.state.values() for x in state.values() if x.numel() > 1}
    return ends, types


def not_finite_on_one_rank():
    """A step with a NaN in the shard of rank 1, then one without: counts, and whether the first moved anything."""
    mesh = init_device_mesh("cpu", (2,))
    param = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
    optimizer = LearnedOptimizer([param], AdamRule())
    param.grad = distribute_tensor(torch.tensor([[1.0, 1.0]] * 3 + [[1.0, torch.nan]]), mesh, [Shard(0)])
    optimizer.step()
    moved = bool((param.to_local() != 1).any())
    param.grad = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    optimizer.step()
    return optimizer.steps_made, optimizer.skipped_steps, moved


def partial_gradient():
    """A whole parameter after a step on a gradient of which each rank has a summand, 1 and 2."""
    mesh = init_device_mesh("cpu", (2,))
    param = nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Replicate()]))
    param.grad = DTensor.from_local(torch.full((2,), 1.0 + dist.get_rank()), mesh, [Partial()])
    LearnedOptimizer([param], SGDRule(lr=1.0, momentum=0.0)).step()
    return param.detach().to_local()


def same(one, other):
    return not isinstance(one, DTensor) and one.dtype == other.dtype and torch.equal(one, other)


def sentence(build):
    """The message of the ``ValueError`` that ``build`` raises."""
    try:
        build()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def main(rank, folder, entries):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.save(placements(), Path(folder) / f"placements-{rank}.pt")
    for number in entries:
        torch.save(report(CATALOGUE[number], mesh, rank), Path(folder) / f"{number}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    chosen = [int(number) for number in sys.argv[2:]] or list(range(len(CATALOGUE)))
    torch.multiprocessing.start_processes(main, (sys.argv[1], chosen), nprocs=2, start_method="fork")
