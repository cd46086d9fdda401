"""Several processes: the meta-gradient does not depend on their number, and a checkpoint fits any number."""

import lightning.pytorch as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from lightning_lopt import PES, MetaTrainer, ResidualRule, TaskDataModule
from lightning_lopt.tasks import ImageMLP, Quadratic, TaskFamily

pytestmark = pytest.mark.usefixtures("one_thread")


class DoubleQuadratics(TaskFamily):
    """Noisy bowls in float64."""

    name = "double"

    def sample(self, generator):
        return Quadratic(torch.rand(6, generator=generator, dtype=torch.float64) + 0.1, noise=0.1)


class Recorder(Callback):
    """Leaves the gradient of every outer step, and the final θ, in a file."""

    def __init__(self, path):
        self.path = path
        self.gradients = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        rows = [value.grad.flatten().clone() for value in module.parameters() if value.grad is not None]
        self.gradients.append(torch.cat(rows))

    def on_train_end(self, trainer, module):
        theta = torch.cat([value.detach().flatten() for value in module.parameters()])
        if trainer.is_global_zero:
            torch.save({"gradients": torch.stack(self.gradients), "theta": theta}, self.path / "record.pt")


class Traffic(Callback):
    """Adds up the bytes that this process hands to collectives, from the second outer step on."""

    def __init__(self, path):
        self.path, self.bytes = path, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0:
            trainer.strategy.model.register_comm_hook(None, default_hooks.allreduce_hook)  # through Python
            for name in ("all_reduce", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list"):
                setattr(dist, name, self.counted(getattr(dist, name)))

    def counted(self, collective):
        def call(tensor, *args, **kwargs):
            self.bytes += tensor.nbytes
            return collective(tensor, *args, **kwargs)

        return call

    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            torch.save(self.bytes / (trainer.global_step - 1), self.path / "bytes.pt")


def fit(path, ranks, max_steps, dtype=torch.float64, ckpt=None, groups=4, pairs=2, callbacks=()):
    torch.manual_seed(0)
    module = MetaTrainer(
        ResidualRule(controller_hidden=4, direction_hidden=4).to(dtype),
        PES(4, pairs=pairs),
        groups=groups,
        horizons=(4, 20),
        lr=0.01,
        warmup_steps=1,
    )
    family = DoubleQuadratics() if dtype == torch.float64 else ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,))
    trainer = L.Trainer(
        max_steps=max_steps,
        logger=False,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(path, every_n_train_steps=3, save_top_k=-1, filename="{step}"),
            Recorder(path),
            *callbacks,
        ],
    )
    path.mkdir(exist_ok=True)
    trainer.fit(module, TaskDataModule(family), ckpt_path=ckpt)
    return torch.load(path / "record.pt")


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), pytest.param(torch.float32, 1e-6, marks=pytest.mark.slow)], ids=str
)
def test_gradient_does_not_depend_on_the_number_of_processes(tmp_path, dtype, tolerance):
    records = {ranks: fit(tmp_path / str(ranks), ranks, 3, dtype) for ranks in (1, 2, 4)}
    first = records[1]["gradients"][0]
    assert first.norm() > 0
    for ranks in (2, 4):
        assert relative(records[ranks]["gradients"][0], first) < tolerance
        assert relative(records[ranks]["gradients"][2], records[1]["gradients"][2]) < 100 * tolerance


@pytest.mark.parametrize(("before", "after"), [pytest.param(2, 1, marks=pytest.mark.slow), (1, 2)])
def test_resume_on_another_number_of_processes(tmp_path, before, after):
    straight = fit(tmp_path / "straight", before, 7)
    resumed = fit(tmp_path / "resumed", after, 7, ckpt=tmp_path / "straight" / "step=3.ckpt")
    assert len(resumed["gradients"]) == 4
    assert relative(resumed["gradients"], straight["gradients"][3:]) < 1e-10
    assert relative(resumed["theta"], straight["theta"]) < 1e-12


def test_groups_must_share_evenly(tmp_path):
    with pytest.raises(Exception, match="groups=3 cannot be shared evenly by 2 processes"):
        fit(tmp_path, 2, 1, groups=3)


def test_traffic_is_that_of_theta_and_a_few_numbers(tmp_path):
    bytes_per_step = []
    for pairs in (1, 8):
        path = tmp_path / str(pairs)
        record = fit(path, 2, 5, torch.float32, groups=2, pairs=pairs, callbacks=[Traffic(path)])
        bytes_per_step.append(torch.load(path / "bytes.pt"))
    theta = record["theta"].nbytes
    assert bytes_per_step[0] == bytes_per_step[1]
    assert theta <= bytes_per_step[0] <= theta + 64


@pytest.mark.slow
def test_end_to_end_does_not_depend_on_the_number_of_processes(tmp_path):
    one, two = (fit(tmp_path / str(ranks), ranks, 100) for ranks in (1, 2))
    assert relative(two["theta"], one["theta"]) < 1e-9
