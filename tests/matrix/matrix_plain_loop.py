"""Reference run of a cell: a plain loop in one process, without Lightning, ranks or schedulers."""

from functools import cache

import torch
from matrix_cells import EPOCHS, STEPS, Cell
from matrix_networks import CLIP, Batch, loss_of, network, rate, shares, windows

from lightning_lopt import LearnedOptimizer


class Expected:
    """Parameters at start and end by name, and for each step its loss and its learning rate."""

    def __init__(self, start: dict[str, torch.Tensor]) -> None:
        self.start = start
        self.end: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        self.rates: list[float] = []


def expected(cell: Cell) -> Expected:
    """The run that ``cell`` must repeat; what makes no difference to the plain loop shares one run."""
    schedule = "none" if cell.optimizer == "swap" else cell.schedule  # a swap drops schedulers
    kind = "plain" if cell.network in ("compiled", "pytorch_lightning") else cell.network
    in_pieces = cell.is_half or kind == "batchnorm"
    loop = cell.loop if cell.accumulation == "short" else "automatic"
    processes = "one" if cell.ranks == 1 or not in_pieces else "ddp"
    return _run(Cell("own", cell.precision, cell.accumulation, cell.clip, schedule, loop, processes, kind), in_pieces)


@cache
def _run(cell: Cell, in_pieces: bool) -> Expected:
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(cell.precision, torch.float32)
    net = network(cell.network).to(dtype)
    optimizer = LearnedOptimizer(net, total_steps=STEPS)
    run = Expected({name: param.detach().clone() for name, param in net.named_parameters()})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=cell.precision == "16-mixed")
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(cell.precision)
    for epoch in range(EPOCHS):
        for window in windows(cell, dtype):
            total, grads = torch.zeros(()), []
            for pieces in pieces_of_ranks(window, cell, in_pieces):
                for piece, weight in pieces:
                    with torch.autocast("cpu", mixed, enabled=mixed is not None, cache_enabled=False):
                        loss = loss_of(net, piece)
                    scaler.scale(loss * weight).backward()
                    total = total + loss.detach().float() * weight
                grads.append([param.grad for param in net.parameters()])
                optimizer.zero_grad()
            for param, parts in zip(net.parameters(), zip(*grads, strict=True), strict=True):
                param.grad = None if parts[0] is None else sum(parts[1:], parts[0])
            scaler.unscale_(optimizer)
            params = [param for param in net.parameters() if param.grad is not None]
            if cell.clip == "norm":
                torch.nn.utils.clip_grad_norm_(params, CLIP["norm"])
            if cell.clip == "value":
                torch.nn.utils.clip_grad_value_(params, CLIP["value"])
            run.rates.append(rate(cell, epoch, len(run.rates)))
            if cell.loop == "automatic":  # Lightning divides a short window by the full factor; its loss is the mean
                total = total * cell.factor / len(window)
            run.losses.append(float(total))
            optimizer.param_groups[0]["lr"] = run.rates[-1]
            optimizer.step(loss=total)
            scaler.update()
            optimizer.zero_grad()
    run.end = {name: param.detach().clone() for name, param in net.named_parameters()}
    return run


def pieces_of_ranks(window: list[Batch], cell: Cell, in_pieces: bool) -> list[list[tuple[Batch, float]]]:
    """For each rank its batches of a window, each with the weight of its loss; or the whole window as one batch."""
    if not in_pieces:
        whole = tuple(torch.cat(parts) for parts in zip(*window, strict=True))
        return [[(whole, len(window) / cell.factor)]]
    weight = 1 / (cell.factor * cell.ranks)
    return [[(shares(batch, cell.ranks)[rank], weight) for batch in window] for rank in range(cell.ranks)]
