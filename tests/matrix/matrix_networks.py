"""The networks of the contract matrix, their batches, and the LightningModule around them."""

from typing import Any

import torch
from matrix_cells import WINDOW_SIZE, WINDOWS, Cell
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from lightning_lopt import LearnedOptimizer

CLIP = {"norm": 0.05, "value": 0.004}  # both bind at every step
Batch = tuple[Tensor, Tensor, Tensor]


class Network(nn.Module):
    """Three numbers from six and a token; ``kind`` adds what the matrix names so."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.middle = nn.Linear(8, 8, bias=kind != "batchnorm")  # a bias there has a gradient of rounding alone
        self.norm = nn.BatchNorm1d(8) if kind == "batchnorm" else nn.Identity()
        self.again = nn.Linear(8, 8) if kind == "shared" else None
        self.table = nn.Embedding(50, 6, sparse=kind == "sparse") if kind in ("embedding", "sparse") else None
        self.unused = nn.Linear(4, 4) if kind == "unused" else None
        self.empty = nn.Parameter(torch.zeros(0, 8)) if kind == "empty" else None
        self.scale = nn.Parameter(torch.tensor(1.5)) if kind == "scalar" else None
        if self.again is not None:
            self.again.weight = self.middle.weight
        if kind == "frozen":
            self.first.requires_grad_(False)
        if kind == "compiled":
            self.middle = torch.compile(self.middle, backend="eager")

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        if self.table is not None:
            x = x + self.table(token)
        hidden = torch.tanh(self.norm(self.middle(torch.tanh(self.first(x)))))
        if self.again is not None:
            hidden = torch.tanh(self.again(hidden))
        if self.empty is not None:
            hidden = hidden + self.empty.sum(0)
        return self.last(hidden if self.scale is None else hidden * self.scale)


def network(kind: str) -> Network:
    """A network of ``kind`` with the same weights on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(kind)


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    x, token, y = batch
    return nn.functional.mse_loss(net(x, token), y)


def windows(cell: Cell, dtype: torch.dtype = torch.float32) -> list[list[Batch]]:
    """For each window of an epoch its micro-batches, over all ranks; the tokens are 5 of the 50 that there are."""
    draws = torch.Generator().manual_seed(1)
    size = WINDOWS * WINDOW_SIZE
    x, y = (torch.randn(size, width, generator=draws).to(dtype) for width in (6, 3))
    token = torch.randint(5, (size,), generator=draws)
    micro = WINDOW_SIZE // cell.factor
    batches = list(zip(x.split(micro), token.split(micro), y.split(micro), strict=True))[: cell.micro_batches]
    return [batches[start : start + cell.factor] for start in range(0, len(batches), cell.factor)]


def shares(batch: Batch, ranks: int) -> list[Batch]:
    """What each rank gets of a micro-batch."""
    return list(zip(*(part.chunk(ranks) for part in batch), strict=True))


def rate(cell: Cell, epoch: int, step: int) -> float:
    """Closed form of the learning rate that the module's scheduler asks for."""
    later = max(0, epoch - 1)  # the plateau's first epoch is its best
    return {"none": 1.0, "epoch": 0.5**epoch, "step": 0.9**step, "plateau": 0.5**later}[cell.schedule]


def scheduler_of(cell: Cell, optimizer: torch.optim.Optimizer) -> Any:
    if cell.schedule == "epoch":
        return StepLR(optimizer, 1, gamma=0.5)
    if cell.schedule == "step":
        return ExponentialLR(optimizer, 0.9)
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")


def module_for(cell: Cell, lightning: Any) -> Any:
    """The LightningModule of a cell; ``lightning`` is ``lightning.pytorch`` or ``pytorch_lightning``."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(cell.network)
            self.automatic_optimization = cell.loop == "automatic"

        def configure_model(self) -> None:
            if cell.processes == "fsdp2":
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def train_dataloader(self) -> Any:
            batches = [shares(batch, cell.ranks)[self.global_rank] for window in windows(cell) for batch in window]
            return torch.utils.data.DataLoader(batches, batch_size=None)

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = loss_of(self.net, batch)
            self.log("loss", loss, on_epoch=True, batch_size=1)
            if not self.automatic_optimization:
                self.manual_backward(loss / cell.factor)
                if (batch_idx + 1) % cell.factor == 0 or batch_idx + 1 == cell.micro_batches:
                    self.manual_step()
            return loss

        def manual_step(self) -> None:
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            if cell.precision != "16-mixed":
                self.clip(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            if cell.schedule == "step":
                scheduler.step()

        def clip(self, optimizer: torch.optim.Optimizer) -> None:
            if cell.loop == "manual" and cell.clip != "none":
                self.clip_gradients(optimizer, CLIP[cell.clip], cell.clip)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            if cell.precision == "16-mixed":  # only here are gradients without the scaler's factor
                self.clip(optimizer)

        def on_train_epoch_end(self) -> None:
            if not self.automatic_optimization and cell.schedule in ("epoch", "plateau"):
                measured = [self.trainer.callback_metrics["loss"]] if cell.schedule == "plateau" else []
                self.lr_schedulers().step(*measured)

        def configure_optimizers(self) -> Any:
            own = cell.optimizer == "own"
            optimizer = LearnedOptimizer(self) if own else torch.optim.AdamW(self.parameters(), lr=1e-3)
            if cell.schedule == "none":
                return optimizer
            interval = "step" if cell.schedule == "step" else "epoch"
            scheduler = {"scheduler": scheduler_of(cell, optimizer), "interval": interval, "monitor": "loss"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    assert len(windows(cell)) == WINDOWS
    return Module()


def trainer_settings(cell: Cell, lightning: Any) -> dict[str, Any]:
    """Arguments of the Trainer of a cell beside its callbacks."""
    settings: dict[str, Any] = {"use_distributed_sampler": False}
    if cell.precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        settings["plugins"] = [lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler)]
    else:
        settings["precision"] = cell.precision
    if cell.loop == "automatic":
        settings["accumulate_grad_batches"] = cell.factor
        if cell.clip != "none":
            settings |= {"gradient_clip_val": CLIP[cell.clip], "gradient_clip_algorithm": cell.clip}
    strategies = lightning.strategies
    if cell.processes == "ddp":
        unused = cell.network == "unused"
        settings["strategy"] = strategies.DDPStrategy(process_group_backend="gloo", find_unused_parameters=unused)
    if cell.processes == "fsdp2":
        settings["strategy"] = strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return {**settings, "devices": cell.ranks}
