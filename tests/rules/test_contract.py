"""What every rule promises, whatever it computes: one matrix of tests over the one catalogue of rules."""

import json

import pytest
import torch
from rule_catalogue import CATALOGUE, cases
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from lightning_lopt import StepContext
from lightning_lopt.rules import ROLES, RULES, role_of_shape
from lightning_lopt.rules.contract import stacks
from lightning_lopt.rules.contract.stacks import grouped

SHAPES = {
    "scalar": (),
    "size1": (1,),
    "vector": (7,),
    "one": (1, 1),
    "row": (1, 6),
    "column": (6, 1),
    "matrix": (4, 5),
    "cube": (3, 4, 2),
    "conv": (5, 3, 2, 2),
    "conv1x1": (4, 6, 1, 1),
    "conv_one": (1, 1, 1, 1),
}
TOTAL = 10

every_rule = pytest.mark.parametrize("entry", cases())


def tensors(seed, *, shapes=SHAPES, scale=1.0, dtype=torch.float64):
    draws = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=draws, dtype=dtype) for name, shape in shapes.items()}


def context(step, *, loss=1.0, total=TOTAL, **more):
    loss = None if loss is None else torch.tensor(float(loss))
    return StepContext(torch.tensor(float(step)), torch.tensor(float(total)), loss, **more)


def run(rule, *, steps=3, shapes=SHAPES, scale=1.0, dtype=torch.float64, **more):
    """Parameters, last updates and state after some steps with drawn gradients; ``more`` goes to the context."""
    params = tensors(0, shapes=shapes, dtype=dtype)
    state = rule.init_state(params, more.get("roles", {}))
    for step in range(steps):
        grads = tensors(step + 1, shapes=shapes, scale=scale, dtype=dtype)
        updates, state = rule(params, grads, state, context(step, **{"loss": 1 / (step + 1), **more}))
        params = {name: params[name] + updates[name] for name in params}
    return params, updates, state


def assert_same(one, other, **tolerance):
    """Equal structure and, within ``tolerance`` (none: bit for bit), equal tensors."""
    (a, structure), (b, other_structure) = tree_flatten(one), tree_flatten(other)
    assert structure == other_structure
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **(tolerance or {"rtol": 0, "atol": 0}))


def test_every_registered_rule_is_in_the_catalogue():
    ours = {name for name, rule in RULES.items() if rule.__module__.startswith("lightning_lopt.")}
    assert {entry.build.rule_name for entry in CATALOGUE} == ours


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_updates_and_state_keep_names_shapes_and_types(entry, dtype):
    """Also where θ has another precision than the parameters."""
    for theta_dtype in (torch.float32, torch.float64):
        rule = entry.rule(theta_dtype)
        before = rule.init_state(tensors(0, dtype=dtype), {})
        params, updates, state = run(rule, dtype=dtype)
        assert {name: (tuple(x.shape), x.dtype) for name, x in updates.items()} == {
            name: (shape, dtype) for name, shape in SHAPES.items()
        }
        assert all(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(state))
        assert tree_flatten(before)[1] == tree_flatten(state)[1]
        for old, new in zip(tree_leaves(before), tree_leaves(state), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            assert new.isfinite().all()
        assert all(value.isfinite().all() for value in params.values())
        assert all(value.any() for value in updates.values())


@every_rule
def test_convolution_kernels_are_matrices_of_out_by_the_rest(entry):
    kernels = {"conv": (5, 3, 2, 2), "conv1x1": (4, 6, 1, 1), "cube": (3, 4, 2)}
    flat = {"conv": (5, 12), "conv1x1": (4, 6), "cube": (3, 8)}
    params, _, _ = run(entry.rule(), shapes=kernels)
    expected, _, _ = run(entry.rule(), shapes=flat)
    for name, shape in flat.items():
        torch.testing.assert_close(params[name].reshape(shape), expected[name])


ALIKE = {f"{shape} {number}": SHAPES[shape] for shape in ("scalar", "vector", "matrix", "conv") for number in range(5)}


@every_rule
@pytest.mark.parametrize("role", ROLES)
def test_tensors_of_one_shape_are_stepped_as_one(entry, role, monkeypatch):
    """With the numbers that they have one by one; weight decay differs between tensors."""
    more = {
        "roles": dict.fromkeys(ALIKE, role),
        "weight_decay": {"matrix 1": 0.1, "vector 2": torch.tensor(0.2).double()},
    }
    assert [len(names) for names in grouped(tensors(0, shapes=ALIKE), list(ALIKE), more["roles"])] == [5, 5, 5, 5]
    stacked = run(entry.rule(), shapes=ALIKE, **more)
    monkeypatch.setattr(stacks, "CPU_FEWEST", 100)
    assert len(grouped(tensors(0, shapes=ALIKE), list(ALIKE), more["roles"])) == len(ALIKE)
    assert_same(stacked, run(entry.rule(), shapes=ALIKE, **more), rtol=1e-10, atol=1e-13)


@every_rule
def test_operations_grow_with_shapes_not_with_tensors(entry):
    counts = []
    for number in (5, 40):
        shapes = {f"{shape} {i}": SHAPES[shape] for shape in ("vector", "matrix") for i in range(number)}
        rule, params = entry.rule(), tensors(0, shapes=shapes)
        state = rule.init_state(params, {})
        with CountOperations() as counter:
            rule(params, params, state, context(3))
        counts.append(counter.computed)
    assert counts[0] == counts[1]


class CountOperations(TorchDispatchMode):
    """Counts operations that compute, without the views that take stacks apart."""

    computed = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.computed += not function.is_view
        return function(*args, **(kwargs or {}))


@every_rule
def test_zero_gradients_move_nothing(entry):
    """Beside the weight decay, which acts along the parameter: a tensor that never had a gradient stays put."""
    params, updates, state = run(entry.rule(), scale=0.0)
    assert all(value.isfinite().all() for value in tree_leaves((params, state)))
    if not entry.rests:
        return
    for name, value in tensors(0).items():
        decay = updates[name] / value
        torch.testing.assert_close(decay, decay.flatten()[0].expand(SHAPES[name]))
        assert (decay <= 0).all()
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    updates, state = entry.rule()(zeros, zeros, entry.rule().init_state(zeros, {}), context(0))
    assert all(value.isfinite().all() for value in tree_leaves(state))
    assert not any(value.any() for value in updates.values())


@every_rule
def test_missing_gradients(entry):
    """Updates and state come for the names that have gradients; a rule keeps nothing for the others."""
    rule, params, grads = entry.rule(), tensors(0), tensors(1)
    state = rule.init_state(params, {})
    some = {name: grads[name] for name in ("conv", "vector", "scalar")}
    updates, after = rule(params, some, state, context(0))
    assert list(updates) == list(some)
    assert set(some) <= set(after.tensors)
    assert (
        tree_flatten({name: after.tensors[name] for name in some})[1]
        == (tree_flatten({name: state.tensors[name] for name in some})[1])
    )
    assert set(after.shared) == set(state.shared)
    alone = {name: params[name] for name in some}
    expected, _ = rule(alone, some, rule.init_state(alone, {}), context(0))
    assert_same(updates, expected)
    assert rule(params, {}, state, context(0))[0] == {}


@every_rule
def test_order_of_names_does_not_matter(entry):
    rule, params, grads = entry.rule(), tensors(0), tensors(1)
    updates, _ = rule(params, grads, rule.init_state(params, {}), context(0))
    turned = dict(reversed(grads.items()))
    other, _ = rule(params, turned, rule.init_state(dict(reversed(params.items())), {}), context(0))
    assert_same(updates, {name: other[name] for name in updates}, rtol=1e-12, atol=1e-15)


@every_rule
def test_roles(entry):
    """Left out they follow from the shape; given, each of the four is taken for any tensor."""
    by_shape = {name: role_of_shape(shape) for name, shape in SHAPES.items()}
    assert_same(run(entry.rule()), run(entry.rule(), roles=by_shape))
    for role in ROLES:
        params, _, state = run(entry.rule(), roles=dict.fromkeys(SHAPES, role))
        assert all(value.isfinite().all() for value in tree_leaves((params, state)))


@every_rule
def test_pure(entry):
    """Nothing is written to, the rule remembers nothing, and the same call gives the same bits."""
    rule, params, grads = entry.rule(), tensors(0), tensors(1)
    _, _, state = run(rule)
    inputs = [*params.values(), *grads.values(), *tree_leaves(state), *rule.parameters(), *rule.buffers()]
    copies, versions = [value.clone() for value in inputs], [value._version for value in inputs]
    first = rule(params, grads, state, context(3))
    rule(params, tensors(2), state, context(4))
    assert_same(first, rule(params, grads, state, context(3)))
    assert [value._version for value in inputs] == versions
    assert_same(inputs, copies)
    assert_same(first, entry.rule()(params, grads, state, context(3)))


@every_rule
def test_vmap_over_theta_equals_a_loop(entry):
    rule, particles = entry.rule(), 3
    draws = torch.Generator().manual_seed(1)
    theta = {
        name: value.detach() + 0.05 * torch.randn(particles, *value.shape, generator=draws, dtype=value.dtype)
        for name, value in rule.named_parameters()
    }
    params = {name: torch.stack([value] * particles) for name, value in tensors(0).items()}
    state = vmap(lambda one: rule.init_state(one, {}))(params)

    def step(theta, params, grads, state, loss, step):
        at = StepContext(step, torch.tensor(10.0), loss, phase=phase)
        updates, state = functional_call(rule, theta, (params, grads, state, at))
        return {name: params[name] + updates[name] for name in params}, state

    def pick(tree, index):
        return tree_map(lambda value: value[index], tree)

    singles = [(pick(params, index), pick(state, index)) for index in range(particles)]
    for number in range(3):
        grads = {
            name: torch.stack([tensors(10 * number + index)[name] for index in range(particles)]) for name in SHAPES
        }
        losses, at = torch.tensor([1.0, 2.0, 0.5]) / (number + 1), torch.tensor(float(number))
        phase = None if number != 1 else 1
        params, state = vmap(step, in_dims=(0, 0, 0, 0, 0, None))(theta, params, grads, state, losses, at)
        singles = [
            step(pick(theta, i), one, pick(grads, i), own, losses[i], at) for i, (one, own) in enumerate(singles)
        ]
    for index, single in enumerate(singles):
        assert_same((pick(params, index), pick(state, index)), single, rtol=1e-9, atol=1e-9)


@every_rule
def test_reads_what_it_says(entry):
    rule = entry.rule()
    assert {what for what in ("loss", "horizon") if getattr(rule, f"reads_{what}")} == entry.reads
    if "loss" in entry.reads:
        with pytest.raises(ValueError, match="loss"):
            run(rule, loss=None)
        # VeLO and Celo do not look at the first two losses
        assert not torch.equal(run(rule, steps=4)[1]["vector"], run(rule, steps=4, loss=0.1)[1]["vector"])
    else:
        assert_same(run(rule), run(rule, loss=None))
    if "horizon" in entry.reads:
        assert not torch.equal(run(rule)[1]["vector"], run(rule, total=1000)[1]["vector"])
    else:
        assert_same(run(rule), run(rule, total=1))


@every_rule
def test_steps_that_are_not_full(entry):
    """They give as much; for a rule all of whose steps are full they are no different."""
    rule = entry.rule()
    assert rule.phase_of(0) in (None, 0)
    light, updates, state = run(rule, phase=1)
    assert tree_flatten(run(rule))[1] == tree_flatten((light, updates, state))[1]
    assert all(value.isfinite().all() for value in tree_leaves((light, state)))
    if "turn_every" not in rule.config:
        assert_same(light, run(rule)[0])


@every_rule
def test_first_state_does_not_depend_on_theta(entry):
    params = tensors(0)
    without_theta = entry.rule().to("meta")
    assert_same(entry.rule().init_state(params, {}), without_theta.init_state(params, {}))


class NoWaiting(TorchFunctionMode):
    """Refuses the calls that copy numbers from Python to a device and wait for the copy."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function is not torch.Tensor.new_tensor or args[0].device.type == "cpu"
        assert function not in (torch.tensor, torch.as_tensor) or not (kwargs or {}).get("device")
        if function is torch.Tensor.to and args[0].device.type == "cpu":
            assert args[1:2] != (torch.device("meta"),) or kwargs == {"non_blocking": True}
        return function(*args, **(kwargs or {}))


@every_rule
def test_never_waits_for_the_device(entry):
    """On the meta device there are shapes and no values, so ``.item()`` or a branch on a value would raise."""
    rule = entry.rule().to("meta")
    params = {name: value.to("meta") for name, value in tensors(0).items()}
    at = StepContext(*(torch.zeros((), device="meta") for _ in range(3)))
    state = rule.init_state(params, {})
    with NoWaiting():
        updates, state = rule(params, params, state, at)
    assert all(value.is_meta for value in tree_leaves((updates, state)))


@every_rule
def test_asked_for_weight_decay_pulls_towards_zero(entry):
    rule, params, grads = entry.rule(), tensors(0), tensors(1)
    state = rule.init_state(params, {})
    plain, _ = rule(params, grads, state, context(3))
    decayed, _ = rule(params, grads, state, context(3, weight_decay={"conv": 0.5, "scalar": torch.tensor(0.5)}))
    for name, value in params.items():
        pulled = (decayed[name] - plain[name]) / value
        assert torch.equal(decayed[name], plain[name]) if name not in ("conv", "scalar") else (pulled < 0).all()


@every_rule
def test_config_builds_the_rule_again(entry):
    rule = entry.rule()
    config = json.loads(json.dumps(rule.config))
    again = RULES[rule.rule_name](**config).double()
    assert again.config == rule.config
    again.load_state_dict(rule.state_dict())
    assert_same(run(rule), run(again))


QUICKLY_COMPILED = {"sgd", "adam", "mlp", "celo2_base", "residual"}
COMPILED = [
    entry
    if str(entry) in QUICKLY_COMPILED
    else pytest.param(entry, marks=pytest.mark.slow)  # 2 to 10 s each, most of them in tracing
    for entry in CATALOGUE
]


@pytest.mark.parametrize("entry", COMPILED, ids=str)
def test_compiles_without_a_break(entry):
    shapes = {name: SHAPES[name] for name in ("vector", "conv")}
    rule, params, grads = entry.rule(), tensors(0, shapes=shapes), tensors(1, shapes=shapes)
    state = rule.init_state(params, {})
    torch._dynamo.reset()
    compiled = torch.compile(rule, backend="eager", fullgraph=True)
    for at in (context(3), context(3, phase=1)):
        assert_same(compiled(params, grads, state, at), rule(params, grads, state, at), rtol=1e-12, atol=0)
