"""A step never waits for the device: shown without one, on tensors that have no values to read, and on a GPU."""

import pytest
import torch
from rule_catalogue import builders
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lopt import LearnedOptimizer

RULES = builders()
STEPS = 3


class Reads(TorchDispatchMode):
    """Records what makes the host wait: reading a value, shapes that depend on values, copies between devices."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        copies = name in ("_to_copy", "copy_") and self.changes_device(name, args, kwargs)
        if name in self.WAITING or masks or copies:
            self.seen.append(str(function))
        return function(*args, **kwargs)

    @staticmethod
    def changes_device(name, args, kwargs):
        source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
        if target is None or source.device == torch.device(target):
            return False
        return not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))


def network(device):
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2, bias=False)).to(device)


def steps(rule, device, watched):
    """A few steps with losses and gradients on ``device``; those after the first, which builds state, are watched."""
    net = network(device)
    optimizer = LearnedOptimizer(net, rule, total_steps=100, weight_decay=0.1)
    for step in range(STEPS):
        loss = net(torch.ones(2, 1, 3, 3, device=device)).square().mean()
        loss.backward()
        if step == 0:
            optimizer.step(loss)
        else:
            with watched:
                optimizer.step(loss)
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("build", RULES)
def test_no_value_is_read_on_a_device_without_values(build):
    """On the meta device reading a value raises, and so do shapes that depend on one."""
    reads = Reads()
    optimizer = steps(build().float(), torch.device("meta"), reads)
    assert reads.seen == []
    assert optimizer.calls == STEPS


def test_reads_are_seen():
    with Reads() as reads:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
        torch.ones(3)[torch.ones(3) > 0]
        torch.ones(()).to("meta")
    assert [name.split(".")[1] for name in reads.seen] == ["_local_scalar_dense"] * 2 + ["index", "_to_copy"]


@pytest.mark.gpu
@pytest.mark.parametrize("build", RULES)
def test_no_step_waits_for_a_gpu(build):
    class Strict:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    assert steps(build().float(), torch.device("cuda"), Strict()).steps_made == STEPS
