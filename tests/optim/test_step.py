"""One step: where the loss comes from, what it is called through, and what it does to each kind of tensor."""

import weakref

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, SGDRule


class Recorder(ResidualRule):
    """Remembers the loss of each step that reached the rule."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def at(self, shared, context):
        assert context.loss.shape == ()
        assert context.loss.dtype == torch.float32
        self.seen.append(float(context.loss))
        return super().at(shared, context)


def build(rule=None, **options):
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    return weight, LearnedOptimizer([weight], rule or Recorder(), total_steps=10, **options)


@pytest.mark.parametrize(
    "loss",
    [
        1.5,
        torch.tensor(1.5),
        torch.tensor([[1.5]]),
        torch.tensor(1.5, dtype=torch.bfloat16),
        nn.Parameter(torch.tensor(1.5)),
    ],
    ids=["float", "tensor", "one entry", "bfloat16", "with a graph"],
)
def test_a_loss_in_any_form(loss):
    weight, optimizer = build()
    weight.grad = torch.ones(2)
    assert optimizer.step(loss=loss) is None
    assert optimizer.rule.seen == [1.5]


def test_a_loss_must_be_one_number():
    weight, optimizer = build()
    weight.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"must be one number, got a tensor of shape \(2,\)"):
        optimizer.step(loss=torch.ones(2))
    assert int(optimizer.param_groups[0]["step"]) == 0


def test_closure_is_called_once_under_enable_grad_and_gives_the_loss():
    weight, optimizer = build()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        result = optimizer.step(closure)
    assert calls == [True]
    assert float(result.detach()) == 5.0
    assert optimizer.rule.seen == [5.0]
    assert optimizer.step(closure) is not result


def test_a_given_loss_wins_over_a_delivered_one_and_that_over_the_closures():
    weight, optimizer = build()
    weight.grad = torch.ones(2)
    optimizer.signals.loss = torch.tensor(2.0)
    optimizer.step(lambda: torch.tensor(1.0), loss=3.0)
    optimizer.signals.loss = torch.tensor(2.0)
    optimizer.step(lambda: torch.tensor(1.0))
    optimizer.step(lambda: torch.tensor(1.0))
    assert optimizer.rule.seen == [3.0, 2.0, 1.0]
    optimizer.signals.loss = torch.tensor(2.0)
    weight.grad = None
    optimizer.step()
    weight.grad = torch.ones(2)
    with pytest.raises(ValueError, match="none arrived"):  # what was delivered for one step is gone in the next
        optimizer.step()


@pytest.mark.parametrize("result", [None, {"loss": torch.tensor(1.0)}, "done"], ids=str)
def test_a_closure_may_return_anything(result):
    weight, optimizer = build(SGDRule(0.1))
    weight.grad = torch.ones(2)
    assert optimizer.step(lambda: result) is result
    torch.testing.assert_close(weight.detach(), torch.tensor([0.9, -2.1]))
    weight, optimizer = build()
    weight.grad = torch.ones(2)
    with pytest.raises(ValueError, match="reads the loss, but none arrived"):
        optimizer.step(lambda: result)


def test_a_sparse_gradient_is_that_of_the_dense_embedding():
    ends = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=sparse)
        optimizer = LearnedOptimizer(table, AdamRule(0.1))
        for row in (1, 3, 1):
            optimizer.zero_grad()
            table(torch.tensor([row, row])).square().sum().backward()
            optimizer.step()
        ends.append(table.weight.detach())
    assert torch.equal(*ends)


def test_parameters_without_a_gradient_are_left_alone_with_their_state():
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LearnedOptimizer([one, other], AdamRule(0.1))
    one.grad, other.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    state, value = dict(optimizer.state[other]), other.detach().clone()
    other.grad = None
    optimizer.step()
    assert torch.equal(other, value)
    assert all(torch.equal(state[key], optimizer.state[other][key]) for key in state)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(dtype):
    """The new parameter is the float32 sum, rounded; the update itself is not rounded before."""
    draws = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4096, generator=draws).to(dtype))
    wide = nn.Parameter(weight.detach().float())
    optimizers = LearnedOptimizer([weight], SGDRule(0.03)), LearnedOptimizer([wide], SGDRule(0.03))
    gradient = torch.randn(4096, generator=draws).to(dtype)
    weight.grad, wide.grad = gradient, gradient.float()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(weight.detach(), wide.detach().to(dtype))
    assert all(value.dtype == torch.float32 for value in optimizers[0].state[weight].values())


def test_float64_stays_float64():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = LearnedOptimizer([weight], SGDRule(0.1))
    weight.grad = torch.full((1,), 1e-12, dtype=torch.float64)
    optimizer.step()
    assert 0 < 1 - float(weight.detach()) < 2e-13


def test_schedulers_and_clipping_of_torch():
    weight, optimizer = build(SGDRule(0.1, momentum=0.0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    positions = []
    for _ in range(3):
        weight.grad = torch.tensor([30.0, 40.0])
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step(lambda: None)
        schedule.step()
        positions.append(weight.detach().clone())
    direction = torch.tensor([0.6, 0.8])
    expected = [torch.tensor([1.0, -2.0]) - 0.1 * total * direction for total in (1.0, 1.5, 1.5)]
    torch.testing.assert_close(positions, expected, rtol=0, atol=1e-5)
    weight.grad = torch.ones(2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=4, cycle_momentum=False)
    optimizer.step()
    cycle.step()
    assert optimizer.param_groups[0]["lr"] != cycle.base_lrs[0]


def test_step_hooks_and_grad_scaler():
    weight, optimizer = build()
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = weight.square().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer, loss=loss)
    scaler.update()
    assert seen == ["post"]
    assert optimizer.rule.seen == [5.0]
    assert optimizer.skipped_steps == 0


def test_a_frozen_rule_and_a_training_one_make_the_same_step():
    """θ gets no gradient from a step, and need not want one."""
    steps = []
    for wants in (True, False):
        torch.manual_seed(0)
        rule = ResidualRule().requires_grad_(wants)
        weight, optimizer = build(rule)
        weight.grad = torch.ones(2)
        optimizer.step(loss=1.0)
        assert not any(value.requires_grad for value in optimizer.state[weight].values())
        steps.append(weight.detach())
    assert torch.equal(*steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_entry_that_is_not_finite_is_found_anywhere(dtype, bad, size):
    """Also where the largest entries are finite and their sum is not; tensors without entries are finite."""
    largest = torch.finfo(dtype).max
    for place in {0, size // 2, size - 1}:
        param, empty = (
            torch.nn.Parameter(torch.zeros(size, dtype=dtype)),
            torch.nn.Parameter(torch.zeros(0, dtype=dtype)),
        )
        optimizer = LearnedOptimizer([param, empty], SGDRule(1e-30))
        param.grad, empty.grad = torch.full_like(param, largest), torch.zeros_like(empty)
        optimizer.step()
        assert optimizer.skipped_steps == 0
        param.grad[place] = bad
        optimizer.step()
        assert optimizer.skipped_steps == 1
        assert param.isfinite().all()


@pytest.mark.parametrize("traces", [None, False])
def test_nothing_keeps_the_step_of_a_stack_while_the_next_one_is_computed(traces):
    """Of models that are stepped stack by stack, temporary tensors of one stack exist at a time."""
    side, alive, updates = 600, [], weakref.WeakSet()

    class Watched(AdamRule):
        def stepped(self, stack, controls, at):
            alive.append(len(updates))
            update, after = super().stepped(stack, controls, at)
            updates.add(update)
            return update, after

    weights = [nn.Parameter(torch.randn(side, side + number)) for number in range(3)]  # a stack of each
    optimizer = LearnedOptimizer(weights, Watched(), total_steps=500, compile=traces)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    for _ in range(2):
        optimizer.step()
    assert alive == [0] * 6
