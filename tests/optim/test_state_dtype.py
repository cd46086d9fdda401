"""``LearnedOptimizer(state_dtype=torch.bfloat16)``: state in half the memory, and everything else as it was."""

import copy
import pickle
import warnings

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lopt import AdamRule, LearnedOptimizer, LearnedOptimizerAdapter, LossGuard, SGDRule, load_rule
from lightning_lopt.evaluation.benchmark.memory import measured_memory
from lightning_lopt.evaluation.step_cost import learned
from lightning_lopt.inductor_graphs import module_of
from lightning_lopt.optim.compiled_steps import CompiledSteps
from lightning_lopt.rules import RULES

OURS = {name: rule for name, rule in sorted(RULES.items()) if rule.__module__.startswith("lightning_lopt.")}
BF16 = torch.bfloat16


def model(seed=0, dtype=torch.float32):
    """Four tensors of one shape, which are stepped as one, and others."""
    torch.manual_seed(seed)
    blocks = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, 6), *blocks, nn.Linear(6, 2)).to(dtype)


def built(net, rule=None, state_dtype=BF16, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has random weights")
        rule = load_rule("base") if rule is None else rule
        return LearnedOptimizer(net, rule, total_steps=40, state_dtype=state_dtype, **options)


def train(net, optimizer, steps=6, first=0):
    dtype = next(net.parameters()).dtype
    for number in range(first, first + steps):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(number)).to(dtype)
        optimizer.zero_grad()
        loss = (net(x) - x[:, :2].sin()).square().mean()
        loss.backward()
        optimizer.step(loss=loss.detach())
    return [param.detach().clone() for param in net.parameters()]


def run(state_dtype=BF16, rule=None, dtype=torch.float32, **how):
    net = model(dtype=dtype)
    optimizer = built(net, rule, state_dtype)
    return train(net, optimizer, **how), optimizer


def tensors(optimizer):
    return [(key, value) for state in optimizer.state.values() for key, value in state.items()]


def assert_kept(optimizer, dtype=BF16):
    assert {value.dtype for _, value in tensors(optimizer) if value.numel() > 1} == {dtype}
    assert {value.dtype for _, value in tensors(optimizer) if value.numel() == 1} <= {torch.float32, torch.int64}


def assert_equal(ends, others):
    assert all(torch.equal(end, other) for end, other in zip(ends, others, strict=True))


def test_what_is_kept_and_that_runs_repeat():
    ends, optimizer = run()
    assert_kept(optimizer)
    assert {value.dtype for value in optimizer.param_groups[0]["shared"].values()} == {torch.float32}
    assert_equal(ends, run()[0])


def test_no_generator_is_used_or_touched():
    net = model()
    optimizer = built(net)
    train(net, optimizer, steps=2)
    ends = []
    for seed in (1, 2):
        other, its = copy.deepcopy((net, optimizer))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        ends.append(train(other, its, first=2))
        assert torch.equal(before, torch.get_rng_state())
    assert_equal(*ends)


@pytest.mark.parametrize("name", ["base", "adam", *(pytest.param(n, marks=pytest.mark.slow) for n in OURS)])
def test_steps_are_those_of_float32_up_to_rounding(name):
    torch.manual_seed(1)
    rule = load_rule("base") if name == "base" else OURS[name]()
    start = [param.detach() for param in model().parameters()]
    (low, optimizer), (high, _) = run(rule=rule), run(None, rule=rule)
    for key, value in tensors(optimizer):
        assert value.dtype == (BF16 if value.numel() > 1 and key not in rule.exact_state else torch.float32), key
    # orthogonalised or in eigenbases, directions that carry next to nothing become as large as the others
    tolerance = 0.25 if name in ("base", "muon", "residual") else 0.1
    for begin, one, other in zip(start, low, high, strict=True):
        assert torch.linalg.vector_norm(one - other) <= tolerance * torch.linalg.vector_norm(other - begin) + 1e-7


@pytest.mark.parametrize("dtype", [BF16, torch.float64, torch.complex64])
def test_parameters_of_other_types(dtype):
    if dtype == torch.complex64:
        param = nn.Parameter(torch.ones(5, 4, dtype=dtype))
        optimizer = built([param], AdamRule(0.01))
        for _ in range(3):
            param.grad = torch.full_like(param, 1 + 1j)
            optimizer.step()
        assert torch.view_as_real(param.detach()).max() < 1
    else:
        _, optimizer = run(dtype=dtype)
    assert {value.dtype for _, value in tensors(optimizer) if value.numel() > 1} == {BF16}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_stop_and_resume_and_copies_are_no_stop(copied):
    expected, _ = run(steps=9)
    net = model()
    optimizer = built(net)
    train(net, optimizer, steps=5)
    other, again = copied((net, optimizer))
    assert_equal(train(other, again, steps=4, first=5), expected)
    fresh = model()
    fresh.load_state_dict(net.state_dict())
    resumed = built(fresh)
    resumed.load_state_dict(optimizer.state_dict())
    assert_equal(train(fresh, resumed, steps=4, first=5), expected)


@pytest.mark.parametrize(("saved", "loaded"), [(None, BF16), (BF16, None), (BF16, torch.float32)])
def test_checkpoints_across_types(saved, loaded):
    net = model()
    optimizer = built(net, AdamRule(0.01), saved)
    train(net, optimizer)
    checkpoint = optimizer.state_dict()
    other = copy.deepcopy(net)
    resumed = built(other, AdamRule(0.01), loaded)
    resumed.load_state_dict(checkpoint)
    assert_kept(resumed, BF16 if loaded == BF16 else torch.float32)
    for (key, one), (_, there) in zip(tensors(optimizer), tensors(resumed), strict=True):
        torch.testing.assert_close(one, there, check_dtype=False, rtol=2**-8, atol=0, msg=key)
    for one, there in zip(
        train(net, optimizer, steps=2, first=6), train(other, resumed, steps=2, first=6), strict=True
    ):
        torch.testing.assert_close(one, there, rtol=0, atol=1e-3)
    assert_kept(optimizer, BF16 if saved == BF16 else torch.float32)


def test_state_that_was_replaced_or_cleared():
    """Tensors in other types are taken over in the type of the state, and the dictionary shows the new ones."""
    net = model()
    optimizer = built(net, AdamRule(0.01))
    train(net, optimizer)
    stacked, single, cleared = net[1].weight, net[0].weight, net[3].weight
    for param in (stacked, single):
        optimizer.state[param]["momentum"] = torch.full(param.shape, 2.0)
    del optimizer.state[cleared]
    train(net, optimizer, steps=1, first=6)
    assert_kept(optimizer)
    for param in (stacked, single):
        assert optimizer.state[param]["momentum"].float().mean() == pytest.approx(1.8, abs=0.1)
    assert float(optimizer.state[cleared]["count"]) == 1


@pytest.mark.filterwarnings("ignore:.*")
def test_a_guard_keeps_exact_copies_and_switches():
    class Ascent(SGDRule):
        def step(self, inputs, controls, at):
            update, state = super().step(inputs, controls, at)
            return -5 * update, state

    net = model()
    optimizer = built(net, Ascent(), guard=LossGuard())
    before = [param.detach().clone() for param in net.parameters()]
    train(net, optimizer, steps=1)
    copies = [optimizer.state[param]["guard_kept"] for param in net.parameters()]
    assert_equal(copies, before)
    other, its = copy.deepcopy((net, built(net, Ascent(), guard=LossGuard())))
    its.load_state_dict(optimizer.state_dict())
    assert_equal([its.state[param]["guard_kept"] for param in other.parameters()], before)
    train(net, optimizer, steps=80, first=1)
    assert optimizer.guard_state not in ("off", "active")
    assert {key for key, value in tensors(optimizer) if value.dtype == BF16} == {"momentum", "second_moment"}


@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_a_step_that_is_not_finite_changes_no_state():
    net = model()
    optimizer = built(net)
    train(net, optimizer)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    for param in net.parameters():
        param.grad = torch.full_like(param, float("nan"))
    optimizer.step(loss=torch.tensor(1.0))
    assert optimizer.skipped_steps == 1
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(value, after[number][key]) for number, own in before.items() for key, value in own.items())


def test_compiled_steps_round_in_their_graphs(monkeypatch):
    """The same bits, where graphs run uncompiled."""
    monkeypatch.setattr(CompiledSteps, "build", staticmethod(lambda program, examples: module_of(program)))
    net = model()
    optimizer = built(net, AdamRule(0.01), compile=True)
    ends = train(net, optimizer, steps=3)
    assert optimizer._compiled_steps.count > 1
    assert not optimizer._compiled_steps.failure
    assert_kept(optimizer)
    assert_equal(ends, run(rule=AdamRule(0.01), steps=3)[0])


@pytest.mark.slow
def test_steps_compiled_by_inductor():
    net = model()
    optimizer = built(net, compile=True)
    ends = train(net, optimizer, steps=3)
    assert optimizer._compiled_steps.count > 1
    assert not optimizer._compiled_steps.failure
    for one, other in zip(ends, run(steps=3)[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_step_that_is_traced_as_a_whole():
    """Its rounding follows the count of steps, which is a tensor."""
    torch._dynamo.reset()
    ends = []
    for compiled in (True, False):
        net = nn.Linear(3, 2)
        nn.init.ones_(net.weight)
        nn.init.zeros_(net.bias)
        optimizer = built(net, SGDRule(lr=0.1))
        train(net, optimizer, steps=1)
        optimizer.step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        ends.append(train(net, optimizer, steps=3, first=1))
    assert_equal(*ends)


def test_memory():
    """Half of 6 numbers for each entry; the peak of a step grows by no more than the wide state of one stack."""
    count, side = 6, 256
    leaves = [(str(number), nn.Parameter(torch.randn(side, side)), "matrix") for number in range(count)]
    for _, leaf, _ in leaves:
        leaf.grad = torch.randn(side, side)
    high, low = (
        measured_memory(
            lambda dtype=dtype: learned(leaves, load_rule("base"), lambda: torch.ones(()), 100, state_dtype=dtype),
            3,
            torch.device("cpu"),
        )[1]
        for dtype in (torch.float32, BF16)
    )
    entries = count * side**2
    assert high.state == pytest.approx(24 * entries, rel=0.01)
    assert low.state == pytest.approx(12 * entries, rel=0.01)
    assert high.peak < 10 * entries  # of 14 where the step before is still referred to
    assert low.peak < high.peak + 24 * side**2 + 4 * side + 1000  # and seeds of the rounding


def test_a_rule_that_is_measured_elsewhere():
    low, high = (run(dtype_of, rule=OURS["schedule_free_adam"]())[1] for dtype_of in (BF16, None))
    for one, other in zip(low.evaluation_params().values(), high.evaluation_params().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("state_dtype", [torch.float16, "bfloat16", 16])
def test_other_types_are_refused(state_dtype):
    with pytest.raises(ValueError, match=r"state_dtype must be torch\.bfloat16, .* got .*16.*; pass torch\.bfloat16"):
        LearnedOptimizer(model(), AdamRule(), state_dtype=state_dtype)


def test_a_fit(tmp_path):
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model()

        def training_step(self, batch, index):
            (x,) = batch
            return (self.net(x) - x[:, :2].sin()).square().mean()

        def configure_optimizers(self):
            return LearnedOptimizer(self, state_dtype=BF16)

    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)

    def fit(*callbacks, resume=None):
        module = Module()
        data = TensorDataset(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
        trainer = L.Trainer(
            max_steps=8,
            accelerator="cpu",
            callbacks=[LearnedOptimizerAdapter(), *callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=bool(callbacks),
        )
        trainer.fit(module, DataLoader(data, batch_size=64), ckpt_path=resume)
        return trainer, list(module.parameters())

    trainer, expected = fit(saves)
    assert_kept(trainer.optimizers[0])
    assert_equal(fit(resume=tmp_path / "step=3.ckpt")[1], expected)
