"""What a guard measures, against plain formulas; and what it costs."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lopt import LearnedOptimizer
from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard_readings import Reading, measured

RATES = {"one": (1.0, 1.0), "equal": (0.5, 0.5), "unequal": (0.5, 0.0), "tensors": (torch.tensor(0.5), 2.0)}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_readings_are_sums_over_all_parameters(rates, dtype):
    torch.manual_seed(0)
    shapes = {"a": (3, 4), "b": (5,)}
    params, grads, updates = ({k: torch.randn(*s, dtype=dtype) for k, s in shapes.items()} for _ in range(3))
    members = [Member({"lr": rate}, k, "matrix", params[k]) for k, rate in zip(shapes, rates, strict=True)]
    row = Reading(*measured(members, params, grads, updates, torch.tensor(1.5)).tolist())
    g, p = (torch.cat([x[k].flatten() for k in shapes]) for x in (grads, params))
    u = torch.cat([updates[k].flatten() * rate for k, rate in zip(shapes, rates, strict=True)])
    slopes = sum(grads[k].abs().sum() * rate for k, rate in zip(shapes, rates, strict=True))
    expected = Reading(1.5, 1.0, float(g @ u), 1e-3 * float(slopes), float(u.norm()), float(p.norm()), 17.0)
    assert row == pytest.approx(expected, rel=1e-5)
    row = Reading(*measured(members, params, grads, updates, None, with_size=False).tolist())
    assert (row.has_loss, row.size) == (0.0, 0.0)


class Operations(TorchDispatchMode):
    """Counts operations, and the bytes that they return."""

    def __init__(self):
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.count += 1
        self.bytes += result.nbytes if isinstance(result, torch.Tensor) else 0
        return result


def test_a_guard_adds_less_than_5_percent_to_a_step():
    done = {}
    for guard in (False, True):
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 5))
        optimizer = LearnedOptimizer(model, "base", total_steps=100, guard=guard)
        for number in range(24):
            loss = model(torch.ones(4, 20)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if number in (3, 23):  # the bases are turned, and are not
                with Operations() as operations:
                    optimizer.step(loss)
                done[guard, number] = operations.count, operations.bytes
            else:
                optimizer.step(loss)
    for number in (3, 23):
        for off, on in zip(done[False, number], done[True, number], strict=True):
            assert off < on < 1.05 * off
