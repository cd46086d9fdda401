"""Parameters that are sharded over processes (FSDP2): each rank holds shards, and a step gathers whole tensors.

Cost of a step: one ``all_gather_into_tensor`` for each mesh (usually there is only one) gathers the shards of all
parameters, of their gradients and of those state tensors that have the shape of their parameter. P (4 + 4 + s) bytes
arrive on each rank, for P parameters in float32 with s bytes of such state per parameter. Apart from that, only
gradients that are not reduced yet are communicated: gradients of parameters that are not sharded (one ``all_reduce``
per dimension of the mesh), and partial sums of tensor parallelism. During the step each rank has whole tensors (for a
short time twice, when they are copied out of the bucket) and computes the whole step; between steps it has shards.
State of other shapes (row and column sums, bases of matrices that are not square, counters) stays whole on each rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_lopt.optim.groups import Member

if TYPE_CHECKING:  # the import takes 0.8 seconds, and fails if torch was built without torch.distributed
    from torch.distributed.tensor import DTensor

Tree = TypeVar("Tree")
_ALIGNMENT = 16  # bytes of the widest type, since each piece of the bucket is viewed in the type of its tensor


class ShardCut(NamedTuple):
    """The cut of a sharded tensor into chunks along one dimension; the last chunks may be shorter or empty.

    Attributes:
        mesh_dim: dimension of the mesh over which the tensor is cut.
        dim: dimension of the tensor that is cut.
        ranks: number of chunks.
        rank: number of the chunk on this rank.
    """

    mesh_dim: int
    dim: int
    ranks: int
    rank: int

    def span(self, size: int) -> tuple[int, int]:
        """First index and length of the chunk on this rank, for a dimension of ``size``."""
        start = min(self.rank * self.chunk(size), size)
        return start, min(self.chunk(size), size - start)

    def chunk(self, size: int) -> int:
        """Length of all chunks except the last ones."""
        return -(-size // self.ranks)


def cut_of(x: DTensor) -> ShardCut | None:
    """The cut of ``x``; ``None`` if each rank holds the whole tensor.

    Raises:
        ValueError: for partial sums, tensors that are cut along several dimensions, and interleaved shards.
    """
    mesh = x.device_mesh
    cuts = [(d, p) for d, p in enumerate(x.placements) if mesh.size(d) > 1 and not p.is_replicate()]
    if not cuts:
        return None
    mesh_dim, placement = cast(tuple[int, Any], cuts[0])
    if len(cuts) > 1 or type(placement).__name__ != "Shard":
        raise ValueError(
            f"a parameter of shape {tuple(x.shape)} has the placements {tuple(x.placements)}, where one Shard, with "
            "Replicate on the other dimensions of the mesh, is needed; apply either fully_shard or tensor parallelism, "
            "not both."
        )
    return ShardCut(mesh_dim, placement.dim % max(x.ndim, 1), mesh.size(mesh_dim), mesh.get_local_rank(mesh_dim))


def check_placements(params: Iterable[Tensor]) -> None:
    """Refuse sharded parameters that :func:`gathered` cannot gather.

    Raises:
        ValueError: see :func:`cut_of`; or if the sizes of the shards are not those of ``torch.chunk``.
    """
    for param in params:
        if is_shard(param) and (cut := cut_of(param)) is not None:
            rows_here, expected = param.to_local().shape[cut.dim], cut.span(param.shape[cut.dim])[1]
            if rows_here != expected:
                raise ValueError(
                    f"a parameter of shape {tuple(param.shape)} has {rows_here} of its rows on this rank where even "
                    f"chunks have {expected}; shard it by fully_shard or distribute_tensor."
                )


def is_shard(x: object) -> TypeGuard[DTensor]:
    """Whether ``x`` is a tensor that processes share, a ``DTensor``."""
    return type(x).__name__ == "DTensor"


def is_sharded(members: Iterable[Member]) -> bool:
    """Whether a step on these parameters needs other ranks."""
    return any(is_shard(member.param) for member in members)


def gathered(tree: Tree) -> Tree:
    """``tree``, a pytree, with all sharded tensors gathered on each rank as whole tensors, by one collective per mesh.

    All ranks must call this function with the same tensors in the same order. Other tensors are returned unchanged.

    Raises:
        ValueError: see :func:`cut_of`.
    """
    leaves, structure = tree_flatten(tree)
    buckets: dict[Any, list[int]] = {}
    for index, x in enumerate(leaves):
        if is_shard(x):
            cut = cut_of(x)
            if cut is None:
                leaves[index] = x.to_local()
            else:
                buckets.setdefault(x.device_mesh.get_group(cut.mesh_dim), []).append(index)
    for group, indices in buckets.items():
        for index, x in zip(indices, _gathered([leaves[index] for index in indices], group), strict=True):
            leaves[index] = x
    result: Tree = tree_unflatten(leaves, structure)
    return result


def _gathered(shards: Sequence[DTensor], group: Any) -> list[Tensor]:
    """Whole tensors from shards that are cut over the same group."""
    shard_cuts = [cast(ShardCut, cut_of(x)) for x in shards]
    shapes = [
        [cut.chunk(size) if dim == cut.dim else size for dim, size in enumerate(x.shape)]
        for x, cut in zip(shards, shard_cuts, strict=True)
    ]
    lengths = [math.prod(shape) * x.dtype.itemsize for x, shape in zip(shards, shapes, strict=True)]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + -(-length // _ALIGNMENT) * _ALIGNMENT)

    def piece(row: Tensor, number: int) -> Tensor:
        """The chunk of one tensor in a row of the bucket, as a view."""
        start = starts[number]
        return row[start : start + lengths[number]].view(shards[number].dtype).view(shapes[number])

    # The group works on the device of the mesh; with CPU offloading, parameters are on another device.
    local_bytes = torch.zeros(starts[-1], dtype=torch.uint8, device=shards[0].device_mesh.device_type)
    for number, (x, cut) in enumerate(zip(shards, shard_cuts, strict=True)):
        local = x.to_local()
        piece(local_bytes, number).narrow(cut.dim, 0, local.shape[cut.dim]).copy_(local)
    ranks = shard_cuts[0].ranks
    bucket = local_bytes.new_empty(ranks * len(local_bytes))
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    all_gather(bucket, local_bytes, group=group)
    rows = bucket.view(ranks, -1).unbind()
    result = []
    for number, (x, cut) in enumerate(zip(shards, shard_cuts, strict=True)):
        padded = torch.cat([piece(row, number) for row in rows], cut.dim)
        result.append(padded.narrow(cut.dim, 0, x.shape[cut.dim]).contiguous().to(x.to_local().device))
    return result


def reduced(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient with the sharding of its parameter; partial sums of tensor parallelism are reduced."""
    if is_shard(grad) and is_shard(param) and grad.placements != param.placements:
        return grad.redistribute(placements=param.placements)
    return grad


def mean_over_ranks(grads: Mapping[str, Tensor], members: Sequence[Member]) -> dict[str, Tensor]:
    """Gradients by name; gradients of parameters that are not sharded are averaged over the ranks of the mesh.

    FSDP2 does not reduce these gradients. The mesh is that of the first sharded parameter. Gradients that agree on all
    ranks stay the same up to rounding.
    """
    mesh = next(m.param for m in members if is_shard(m.param)).device_mesh
    unreduced = [m.name for m in members if not is_shard(m.param)]
    if not unreduced:
        return dict(grads)
    flat = torch.cat([grads[name].reshape(-1) for name in unreduced])  # cat promotes types
    flat = flat.to(mesh.device_type)
    for dim in range(mesh.ndim):
        dist.all_reduce(flat, group=mesh.get_group(dim))
    flat = flat / mesh.size()
    pieces = zip(unreduced, torch.split(flat, [grads[name].numel() for name in unreduced]), strict=True)
    return {**grads, **{name: x.view(grads[name].shape).to(grads[name]) for name, x in pieces}}


def local_slice(x: Tensor, like: Tensor) -> Tensor:
    """The slice of the whole tensor ``x`` on this rank, cut as ``like``; ``x`` itself if ``like`` is not sharded.

    The slice is a view; ``x`` may have more dimensions than ``like``.
    """
    cut = cut_of(like) if is_shard(like) else None
    if cut is None:
        return x
    return x.narrow(cut.dim, *cut.span(x.shape[cut.dim]))


def local(x: Tensor) -> Tensor:
    """The shard of ``x`` on this rank, or ``x`` itself if it is not sharded; writing to the result writes to ``x``."""
    return x.to_local() if is_shard(x) else x


def with_local(shard: Tensor, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """The sharded tensor whose slice on this rank is ``shard``; its shape is ``shape``, by default that of ``like``."""
    if not is_shard(like):
        return shard
    size = torch.Size(like.shape if shape is None else shape)
    stride = torch.empty(size, device="meta").stride()
    # clone: a view would keep the whole tensor in memory
    return type(like).from_local(
        shard.clone(memory_format=torch.contiguous_format),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=size,
        stride=stride,
    )


def cut_like(x: Tensor, param: Tensor) -> Tensor:
    """``x`` as state of ``param``: sharded as ``param`` if both have the same shape, otherwise whole.

    Args:
        x: whole, or sharded in any way; changing the sharding takes a collective.
        param: a parameter, sharded or not.
    """
    same_shape = tuple(x.shape) == (*param.shape, *((2,) if param.is_complex() and not x.is_complex() else ()))
    if is_shard(x):
        if is_shard(param) and same_shape and x.device_mesh == param.device_mesh:
            return x if x.placements == param.placements else x.redistribute(placements=param.placements)
        x = x.full_tensor()
    if not is_shard(param) or not same_shape:
        return x
    return with_local(local_slice(x, param), param, x.shape)


def free_copies(module: nn.Module) -> None:
    """Free the gathered copies of parameters that ``fully_shard`` may keep from one forward pass to the next.

    Call this function before parameters change outside of a training step, and before they are read by name.
    """
    for submodule in module.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(submodule).__mro__):
            cast(Any, submodule).reshard()
