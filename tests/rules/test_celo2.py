"""Celo2 against the reference implementation's own numbers, and in PyTorch's layouts against those."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_runs import Recording
from reference_rules import reference_rule as recorded_rule

from lightning_lopt import Celo2BaseRule, Celo2Rule, StepContext
from lightning_lopt.rules.shared import fast_entry_network
from lightning_lopt.rules.shared.arithmetic import newton_schulz

# Outputs of the JAX implementation (github.com/amoudgl/celo, 66d97611) on ten tensors of ranks 0 to 4, with random θ.
GOLDEN = sorted((Path(__file__).parent / "golden").glob("celo2*.npz"))

golden = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)


def reference_rule(path, dtype):
    """The rule of a file with its θ, and the roles that split its tensors as the reference does by name."""
    record = Recording(path)
    rule, roles = recorded_rule(record, dtype), {}
    if isinstance(rule, Celo2Rule):
        roles = dict.fromkeys(record.names, "matrix") | {"bias": "vector", "embed": "embedding"}
    return rule, roles


def steps_of(path, dtype):
    """Parameters and state after each recorded step, beside the file's: (step, start, params, state, data)."""
    data = np.load(path)
    rule, roles = reference_rule(path, dtype)
    start = {key.split("/")[1]: torch.tensor(data[key], dtype=dtype) for key in data if key.startswith("param0/")}
    params, state = start, rule.init_state(start, roles)
    for step in range(len(data["loss"])):
        grads = {name: torch.tensor(data[f"grad/{name}"][step], dtype=dtype) for name in params}
        with torch.no_grad():
            updates, state = rule(
                params, grads, state, StepContext(torch.tensor(float(step)), torch.tensor(20.0), roles=roles)
            )
        params = {name: params[name] + updates[name] for name in params}
        yield step, start, params, state, data


@golden
def test_same_parameters_as_the_reference_in_float64(path):
    for step, start, params, _, data in steps_of(path, torch.float64):
        for name, value in params.items():
            expected = torch.tensor(data[f"f64/step{step:02d}/param/{name}"])
            moved = (expected - start[name]).abs().max()
            assert (value - expected).abs().max() <= 1e-12 * moved, (step, name)


@golden
def test_same_parameters_as_the_reference_in_float32(path):
    for step, start, params, _, data in steps_of(path, torch.float32):
        for name, value in params.items():
            expected = torch.tensor(data[f"step{step:02d}/param/{name}"])
            moved = (expected - start[name]).abs().max()
            rounding = 6e-7 * expected.abs().max()  # of the parameters themselves, whatever the step
            assert (value - expected).abs().max() <= 2e-5 * moved + rounding, (step, name)


KEYS = {"m": "momentum", "v": "second_moment", "row": "rows", "col": "columns", "diag": "diagonal"}
ADAM_KEYS = {"adam_m": "momentum", "adam_v": "second_moment"}


@golden
def test_same_state_as_the_reference(path):
    compared = set()
    for step, _, _, state, data in steps_of(path, torch.float64):
        prefix = f"f64/step{step:02d}/state/"
        for key in data:
            kind, _, name = key.removeprefix(prefix).partition("/")
            if not key.startswith(prefix) or kind not in KEYS | ADAM_KEYS:
                continue
            ours = state.tensors[name][(KEYS | ADAM_KEYS)[kind]]
            expected = torch.tensor(data[key])
            if kind in KEYS:  # there the decays are the last axis
                expected = expected.movedim(-1, 0)
            assert ours.numel() == expected.numel()
            torch.testing.assert_close(ours.reshape(expected.shape), expected, rtol=1e-12, atol=0)
            compared.add((name, (KEYS | ADAM_KEYS)[kind]))
    assert compared == {(name, key) for name, own in state.tensors.items() for key in own}


def trained(build, **arguments):
    """A rule with biases that are not 0, float64."""
    torch.manual_seed(0)
    rule = build(**arguments).double()
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return rule


def run(rule, shape, *, steps=3, seed=0, turn=lambda x: x):
    """Last update and state of one tensor whose parameters and gradients are drawn, then turned."""
    draws = torch.Generator().manual_seed(seed)

    def draw():
        return turn(torch.randn(shape, generator=draws, dtype=torch.float64))

    params = {"weight": draw()}
    state = rule.init_state(params, {})
    for step in range(steps):
        at = StepContext(torch.tensor(float(step)), torch.tensor(1.0))
        updates, state = rule(params, {"weight": draw()}, state, at)
        params = {"weight": params["weight"] + updates["weight"]}
    return updates["weight"].detach(), state.tensors["weight"]


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("orthogonalise", [False, True])
def test_a_linear_layer_is_the_references_transposed(shape, orthogonalise):
    """(out, in) against (in, out): the transposed step, and rows and columns in the same roles, ties included."""
    ours, state = run(trained(Celo2BaseRule, orthogonalise=orthogonalise), shape)
    reference = trained(Celo2BaseRule, orthogonalise=orthogonalise, matrix="last_two")
    theirs, their_state = run(reference, shape, turn=lambda x: x.mT)
    torch.testing.assert_close(ours, theirs.mT, rtol=1e-9, atol=1e-12)
    for key, value in their_state.items():
        torch.testing.assert_close(state[key], value.mT if value.ndim == 3 or key == "second_moment" else value)


def test_which_axis_is_factored_matters_for_square_matrices():
    ours, _ = run(trained(Celo2BaseRule), (4, 4))
    theirs, _ = run(trained(Celo2BaseRule, matrix="last_two"), (4, 4))
    assert not torch.allclose(ours, theirs, rtol=0.01)


@pytest.mark.parametrize("orthogonalise", [False, True])
def test_a_kernel_is_one_matrix_or_one_per_position(orthogonalise):
    """(out, in, h, w) is one matrix; for the reference, (h, w, in, out) is h x w matrices of their own."""
    shape = (6, 4, 2, 3)
    flat, _ = run(trained(Celo2BaseRule, orthogonalise=orthogonalise), shape)
    as_matrix, _ = run(trained(Celo2BaseRule, orthogonalise=orthogonalise), shape, turn=lambda x: x.reshape(6, 24))
    torch.testing.assert_close(flat.reshape(6, 24), as_matrix)
    reference = trained(Celo2BaseRule, orthogonalise=orthogonalise, matrix="last_two")
    positions, _ = run(reference, shape, turn=lambda x: x.permute(2, 3, 1, 0))
    sizes = positions.square().mean((-2, -1))
    torch.testing.assert_close(sizes, torch.full_like(sizes, 1e-6), rtol=1e-6, atol=0)
    sizes = flat.square().mean((0, 1))
    assert sizes.max() / sizes.min() > 1.05
    assert not torch.allclose(positions.permute(3, 2, 0, 1), flat, rtol=0.01)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 5), (3, 4, 2), (5, 3, 2, 2)], ids=str)
def test_every_step_has_the_same_size(shape):
    rule = trained(Celo2BaseRule, step_mult=0.02, rms_mult=0.5)
    update, _ = run(rule, shape)
    assert float(update.square().mean().sqrt()) == pytest.approx(0.01, rel=1e-6)


def test_orthogonal_steps_have_singular_values_near_one_another():
    update, _ = run(trained(Celo2BaseRule, orthogonalise=True), (8, 40))
    values = torch.linalg.svdvals(update / 1e-3) / 40**0.5
    assert 0.6 < values.min() < values.max() < 1.4
    slices = torch.randn(3, 5, 4, dtype=torch.float64)
    slices = slices / torch.linalg.matrix_norm(slices, keepdim=True)
    torch.testing.assert_close(newton_schulz(slices), torch.stack([newton_schulz(one) for one in slices]))


@pytest.mark.parametrize("shape", [(), (50,), (7, 9), (50, 2), (1, 60), (60, 1), (5, 3, 2, 2)], ids=str)
def test_blocks_change_nothing(shape, monkeypatch):
    """Large tensors are worked on in blocks of rows, with the same numbers."""
    rule = trained(Celo2BaseRule, exp_mult=0.5)
    whole, state = run(rule, shape)
    monkeypatch.setattr(fast_entry_network, "BLOCK", 16)
    for recorded in (True, False):  # in memory of their own, or in the same memory one after the other
        with torch.set_grad_enabled(recorded):
            parts, part_state = run(rule, shape)
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-14)
        assert all(torch.equal(state[key], part_state[key]) for key in state)


def test_the_second_output_counts_only_with_exp_mult():
    rules = {mult: trained(Celo2BaseRule, exp_mult=mult) for mult in (0.0, 0.5)}
    before = {mult: run(rule, (4, 5))[0] for mult, rule in rules.items()}
    with torch.no_grad():
        for rule in rules.values():
            rule.network.weight_2[1] += 1
            rule.network.weight_2[2] += 1
    assert torch.equal(before[0.0], run(rules[0.0], (4, 5))[0])
    assert not torch.allclose(before[0.5], run(rules[0.5], (4, 5))[0])


def test_adam_roles():
    """Which tensors go to Adam, by role; without Adam the two classes are one rule."""
    shapes = {"matrix": (4, 5), "vector": (5,), "embedding": (6, 3), "head": (3, 4)}
    params = {role: torch.randn(shape, dtype=torch.float64) for role, shape in shapes.items()}
    roles = {role: role for role in shapes}
    by_adam = {
        adam: {name for name, own in Celo2Rule(adam_roles=adam).init_state(params, roles).tensors.items()
               if set(own) == {"momentum", "second_moment"} and own["momentum"].shape == params[name].shape}
        for adam in ((), ("vector", "embedding"), ("head",), ("matrix", "vector"))
    }  # fmt: skip
    assert all(set(adam) == found for adam, found in by_adam.items())
    assert Celo2Rule().adam_roles == ["vector", "embedding"]
    none = trained(Celo2Rule, adam_roles=[], orthogonalise=False)
    base = trained(Celo2BaseRule)
    for shape in shapes.values():
        assert torch.equal(run(none, shape)[0], run(base, shape)[0])


def test_initial_weights():
    """Truncated at two standard deviations 1/√inputs; no bias."""
    network = Celo2BaseRule(hidden=64).network
    for name, inputs in {"inner_0": 30, "outer_0": 30, "weight_1": 64, "weight_2": 64}.items():
        weight = getattr(network, name)
        assert weight.abs().max() <= 2 * inputs**-0.5
        assert float(weight.detach().std()) == pytest.approx(0.88 * inputs**-0.5, rel=0.15)
    assert not any(bias.any() for bias in (network.bias_0, network.bias_1, network.bias_2))


@pytest.mark.parametrize("shape", [(4, 3), (5,)])
def test_a_schedule_multiplies_the_whole_step(shape):
    generator = torch.Generator().manual_seed(0)
    param, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    rules = [Celo2Rule(weight_decay=0.1, schedule=schedule) for schedule in ("constant", "warmup_cosine")]
    rules[1].load_state_dict(rules[0].state_dict())
    for step, factor in ((0, 0.1), (9, 1.0), (105, 0.5), (199, 0.5 * (1 - math.cos(math.pi / 190)))):
        context = StepContext(step=torch.tensor(float(step)), total_steps=torch.tensor(200.0))
        updates = []
        for rule in rules:
            state = rule.init_state({"x": param}, {})
            updates.append(rule({"x": param}, {"x": grad}, state, context)[0]["x"])
        torch.testing.assert_close(updates[1], factor * updates[0])
