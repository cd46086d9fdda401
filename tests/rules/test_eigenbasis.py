"""Bases that are followed by matrix products: against the eigenvectors of a decomposition, and what must stay true."""

import pytest
import torch
from torch.func import vmap

from lightning_lopt import ResidualRule
from lightning_lopt.rules import StepContext
from lightning_lopt.rules.residual_parts.eigenbasis import (
    EVENING,
    LARGEST_SIDE,
    LARGEST_TURN,
    covariance_of,
    follow,
    init_bases,
    into_bases,
    out_evened,
    out_of_bases,
    stored,
    turned,
    turned_over,
)
from lightning_lopt.rules.shared.arithmetic import matrix_shape


def coupling(basis, covariance):
    """Largest entry beside the diagonal in the basis, relative to the two variances it couples."""
    inside = basis.mT @ covariance @ basis
    spread = inside.diagonal().sqrt()
    correlations = inside / (spread[:, None] * spread)
    return float((correlations - torch.eye(len(basis))).abs().max())


def drawn_covariance(variances, seed=0):
    draws = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(len(variances), len(variances), generator=draws).double())[0]
    return axes @ torch.diag(variances) @ axes.mT, axes


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_a_fixed_covariance_is_diagonalised(scale):
    covariance, axes = drawn_covariance(torch.logspace(0, 2, 12).double())
    basis = torch.eye(12).double()
    before = coupling(basis, covariance)
    for _ in range(60):
        basis = turned(basis, scale * covariance)
    assert before > 0.3
    assert coupling(basis, covariance) < 1e-3
    overlaps = (axes.mT @ basis).abs()
    torch.testing.assert_close(
        overlaps.amax(0), torch.ones(12).double(), rtol=0, atol=1e-3
    )  # eigenvectors, in an order


@pytest.mark.parametrize(
    "covariance",
    [torch.zeros(5, 5), torch.ones(5, 5), torch.eye(5), torch.diag(torch.tensor([1.0, 0, 0, 0, 1e-20]))],
    ids=["zero", "rank-one", "equal", "degenerate"],
)
def test_a_basis_stays_orthogonal_whatever_comes(covariance):
    basis = torch.eye(5)
    for _ in range(1000):
        basis = turned(basis, covariance)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(5), rtol=0, atol=1e-5)


def test_the_largest_turn_leaves_a_basis_orthogonal():
    """Half a radian at most: the expansion is orthogonal up to 0.5⁶ / 64, Newton-Schulz leaves 3 / 4 of its square."""
    covariance, _ = drawn_covariance(torch.logspace(0, 3, 32).double())
    identity = torch.eye(32).double()
    basis = turned(identity, covariance)
    gram = basis.mT @ basis
    torch.testing.assert_close(gram, identity, rtol=0, atol=0.75 * (LARGEST_TURN**6 / 64) ** 2)
    farthest = 2 * torch.asin(torch.linalg.matrix_norm(basis - identity, ord=2) / 2)
    assert 0.5 * LARGEST_TURN < float(farthest) < 1.01 * LARGEST_TURN


def test_wide_sides_turn_as_far_as_narrow_ones():
    """The limit is one on the turn as a whole, not on the sum of an axis' angles, which grows with the width."""
    covariance, _ = drawn_covariance(torch.logspace(0, 3, 64).double())
    basis = torch.eye(64).double()
    for _ in range(15):
        basis = turned(basis, covariance)
    inside = (basis.mT @ covariance @ basis).square()
    assert float(1 - inside.diagonal().sum() / inside.sum()) < 0.02


def test_a_basis_stays_orthogonal_under_noise():
    draws = torch.Generator().manual_seed(0)
    state = init_bases(torch.zeros(6, 3, 2))
    for _ in range(500):
        state = follow(state, torch.randn(6, 3, 2, generator=draws), torch.tensor(0.3))
    for name in ("row_basis", "column_basis"):
        torch.testing.assert_close(state[name].mT @ state[name], torch.eye(6), rtol=0, atol=1e-3)


def test_into_the_bases_and_out_again():
    draws = torch.Generator().manual_seed(0)
    state = init_bases(torch.zeros(4, 3, 5).double())
    for _ in range(20):
        state = follow(state, torch.randn(4, 3, 5, generator=draws).double(), torch.tensor(0.1))
    x = torch.randn(4, 3, 5, generator=draws).double()
    inside = into_bases(x, state)
    assert (inside - x).abs().max() > 0.1
    torch.testing.assert_close(out_of_bases(inside, state), x, rtol=0, atol=1e-3)
    by_hand = state["row_basis"].mT @ x.reshape(4, 15) @ state["column_basis"]
    torch.testing.assert_close(inside, by_hand.reshape(4, 3, 5))


@pytest.mark.parametrize("sizes", [(5, 5), (5, 3), (3, 5)])
def test_symmetric_covariances_are_stored_once(sizes):
    """Covariances and bases of a square matrix are 3 n² + n numbers; what is stored gives both covariances back."""
    draws, matrix = torch.Generator().manual_seed(0), torch.zeros(sizes)
    state = init_bases(matrix)
    assert {key: value.shape for key, value in state.items() if "basis" not in key} == (
        {"covariances": (5, 5), "column_variances": (5,)}
        if sizes == (5, 5)
        else {"row_covariance": (sizes[0],) * 2, "column_covariance": (sizes[1],) * 2}
    )
    expected = {"row": torch.zeros(sizes[0], sizes[0]), "column": torch.zeros(sizes[1], sizes[1])}
    for turn in (False, True, False):
        grad = torch.randn(sizes, generator=draws)
        state = follow(state, grad, torch.tensor(0.25), turn=turn)
        for side, x in (("row", grad), ("column", grad.mT)):
            expected[side] = 0.75 * expected[side] + 0.25 * x @ x.mT
    for side in expected:
        covariance = covariance_of(state, side)
        assert torch.equal(covariance, covariance.mT)
        torch.testing.assert_close(covariance, expected[side])


def test_stored_covariances_of_many_tensors():
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    many = {"row": x @ x.mT, "column": x.mT @ x}
    for side, expected in many.items():
        covariance = vmap(lambda sides, side=side: covariance_of(stored(sides), side))(many)
        torch.testing.assert_close(covariance, expected)


def test_a_long_side_keeps_its_axes():
    state = init_bases(torch.zeros(LARGEST_SIDE + 1, 2, device="meta"))
    assert sorted(state) == ["column_basis", "column_covariance"]


def test_a_long_side_costs_nothing():
    """An embedding's vocabulary: not even its covariance is formed, which would take 400 GB here."""
    params = {"w": torch.ones(10**5 * 3, 2)}
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"])
    context = StepContext(torch.tensor(0.0), torch.tensor(10.0), roles={"w": "matrix"})
    with torch.no_grad():
        updates, _ = rule(params, params, rule.init_state(params, context.roles), context)
    assert updates["w"].abs().max() > 0


def test_many_bases_at_once():
    covariances = torch.stack([drawn_covariance(torch.logspace(0, 1, 4).double(), seed)[0] for seed in range(3)])
    bases = torch.eye(4).double().expand(3, 4, 4)
    together = vmap(turned)(bases, covariances)
    torch.testing.assert_close(together, torch.stack([turned(bases[0], one) for one in covariances]))


def train(rule, rows, columns, steps=200):
    """Loss at the end, against the first, of a quadratic whose curvature is ``rows`` on one side and ``columns``."""
    draws = torch.Generator().manual_seed(1)
    params, losses = {"w": torch.randn(8, 6, generator=draws).double()}, []
    state = rule.init_state(params, {"w": "matrix"})
    for step in range(steps):
        grad = rows @ params["w"] @ columns
        losses.append(0.5 * float((params["w"] * grad).sum()))
        context = StepContext(torch.tensor(float(step)), torch.tensor(float(steps)), roles={"w": "matrix"})
        with torch.no_grad():
            updates, state = rule(params, {"w": grad}, state, context)
        params = {"w": params["w"] + updates["w"]}
    return losses[-1] / losses[0]


def test_rotation_finds_axes_that_adam_cannot():
    """Where no axis of the problem is an entry of the matrix, Adam in the eigenbases ends far below Adam."""
    options = {"direction": False, "controller": False, "orthogonalised": [], "step_size": 0.05}
    rows = drawn_covariance(torch.logspace(0, 2, 8).double(), 3)[0]
    columns = drawn_covariance(torch.logspace(0, 2, 6).double(), 4)[0]
    adam, rotated = ResidualRule(**options).double(), ResidualRule(**options, rotated=["matrix"]).double()
    assert train(rotated, rows, columns) < 0.1 * train(adam, rows, columns)


def test_a_role_is_orthogonalised_or_rotated():
    with pytest.raises(ValueError, match="orthogonalised and rotated both name matrix; a role can be one of them"):
        ResidualRule(rotated=["matrix"])


@pytest.mark.parametrize(
    ("growth", "caution", "power"), [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.7, 0.0), (0.4, 0.6, 0.5)]
)
def test_the_direction_is_that_of_adam_in_the_bases(growth, caution, power):
    """Against plain lines of arithmetic, in the bases as they are followed."""
    rule = ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"]).double()
    with torch.no_grad():
        rule.constants.momentum_growth.fill_(growth)
        rule.constants.caution.fill_(caution)
        rule.constants.coherence_power.fill_(power)
    draws = torch.Generator().manual_seed(5)
    params = {"w": torch.randn(5, 3, generator=draws).double()}
    state, bases = rule.init_state(params, {"w": "matrix"}), init_bases(params["w"])
    momentum, moment = torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    initial = params["w"].square().mean().sqrt()
    for step in range(6):
        grad = torch.randn(5, 3, generator=draws).double()
        context = StepContext(torch.tensor(float(step)), torch.tensor(100.0), roles={"w": "matrix"})
        with torch.no_grad():
            updates, state = rule(params, {"w": grad}, state, context)
        bases = follow(bases, grad, torch.tensor(0.05))
        rows, columns = bases["row_basis"], bases["column_basis"]
        memory = 19 * (1 + step / 19) ** growth
        beta = memory / (memory + 1)
        momentum = beta * momentum + (1 - beta) * grad
        moment = 0.95 * moment + 0.05 * (rows.mT @ grad @ columns).square()
        mixed = 0.05 * grad + 0.95 * momentum / (1 - beta ** (step + 1))
        inside = rows.mT @ mixed @ columns / (moment / (1 - 0.95 ** (step + 1))).sqrt()
        coherence = inside.square().mean().sqrt()
        relative = rows.mT @ grad @ columns / (moment / (1 - 0.95 ** (step + 1))).sqrt()
        weight = (1 - 0.95 ** (step + 1)) * (0.05 + 0.95 / (1 - beta ** (step + 1)))
        against = (-100 * inside * relative / weight).clamp(0, 1)  # in full force from -0.01 on in a long run
        direction = rows @ (inside * (1 - caution * against)) @ columns.mT
        direction = direction / direction.square().mean().sqrt() * (coherence / 0.3) ** power
        expected = (
            -0.02 * min(1, (step + 1) / 5) * min(1, (100 - step) / 95) * (initial * direction + 1e-3 * params["w"])
        )
        torch.testing.assert_close(updates["w"], expected, rtol=1e-4, atol=1e-8)
        params = {"w": params["w"] + updates["w"]}


@pytest.mark.parametrize("shape", [(12, 48), (48, 12), (12, 6, 8)])
def test_where_a_long_side_has_no_basis_singular_values_become_nearly_equal(shape):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draws, dtype=torch.float64)
    bases = init_bases(x, longest_side=12)
    (key,) = [key for key in bases if key.endswith("basis")]
    bases[key] = torch.linalg.qr(torch.randn(12, 12, generator=draws, dtype=torch.float64))[0]
    evened = out_evened(x, bases)
    left, values, right = torch.linalg.svd(out_of_bases(x, bases).reshape(matrix_shape(shape)), full_matrices=False)
    coordinates = left.mT @ evened.reshape(matrix_shape(shape)) @ right.mT  # diagonal: the singular vectors stay
    torch.testing.assert_close(coordinates, torch.diag(coordinates.diagonal()), rtol=0, atol=1e-12)
    # the quintics that are said to be applied, in numbers instead of matrices
    expected = values / (values**8).sum() ** (1 / 8)
    for a, b, c in EVENING:
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(coordinates.diagonal(), expected)
    assert expected.min() > 0.78
    assert expected.max() < 1.22
    together = vmap(lambda y: out_evened(y, bases))(torch.stack([x, 1e-6 * x]))
    torch.testing.assert_close(together, torch.stack([evened, evened]))
    assert torch.equal(out_evened(torch.zeros_like(x), bases), torch.zeros_like(x))
    both = init_bases(x)
    assert torch.equal(out_evened(x, both), out_of_bases(x, both))


def test_the_quintics_lie_close_to_one():
    x = torch.linspace(0.05, 1, 10_001, dtype=torch.float64)
    for a, b, c in EVENING:
        x = a * x + b * x**3 + c * x**5
    assert float((x - 1).abs().max()) < 0.2182  # no quintics come closer, to the digits given


def test_of_unequal_sides_the_longer_one_has_a_basis_up_to_the_limit():
    def sides(*shape):
        return sorted(key for key in init_bases(torch.zeros(shape), longest_side=8) if key.endswith("basis"))

    assert sides(8, 4) == sides(4, 8) == sides(16, 16) == ["column_basis", "row_basis"]
    assert sides(9, 4) == ["column_basis"]
    assert sides(4, 9) == sides(4, 3, 3) == ["row_basis"]


def test_the_momentum_turns_with_the_bases():
    draws = torch.Generator().manual_seed(0)
    state = init_bases(torch.zeros(4, 6, dtype=torch.float64))
    state["rotated_momentum"] = torch.randn(4, 6, generator=draws, dtype=torch.float64)
    momentum = state["rotated_momentum"]  # the bases are the identity
    for _ in range(5):
        grad = torch.randn(4, 6, generator=draws, dtype=torch.float64)
        bases = follow(state, grad, torch.tensor(0.3, dtype=torch.float64))
        state |= {**bases, "rotated_momentum": turned_over(state["rotated_momentum"], state, bases)}
        torch.testing.assert_close(out_of_bases(state["rotated_momentum"], state), momentum, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(state["rotated_momentum"], momentum, rtol=0.1)


def test_a_rule_without_long_sides_has_a_smaller_state_and_trains():
    params = {"w": torch.zeros(4, 32)}
    rules = [rotated_rule(longest_side=longest_side) for longest_side in (32, 31)]
    sizes = [sum(x.numel() for x in rule.init_state(params, {}).tensors["w"].values()) for rule in rules]
    assert sizes[0] - sizes[1] == 2 * 32**2
    target = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    params = {"w": target + 1}
    state = rules[1].init_state(params, {})
    for step in range(200):
        at = StepContext(torch.tensor(float(step)), torch.tensor(200.0))
        updates, state = rules[1](params, {"w": params["w"] - target}, state, at)
        params = {"w": (params["w"] + updates["w"]).detach()}
    assert float((params["w"] - target).square().mean()) < 1e-2


def test_only_matrices_are_orthogonalised_where_a_long_side_has_no_basis():
    shape, updates = (4, 32), {}
    grads = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    rule = ResidualRule(
        direction=False, controller=False, orthogonalised=[], rotated=["matrix", "head"], longest_side=16
    )
    for role in ("matrix", "head"):
        params = {"w": torch.ones(shape)}
        at = StepContext(torch.tensor(0.0), torch.tensor(200.0), roles={"w": role})
        updates[role] = rule(params, grads, rule.init_state(params, {"w": role}), at)[0]["w"]
    values = [torch.linalg.svdvals(update) for update in updates.values()]
    assert values[0].max() / values[0].min() < 1.6 < values[1].max() / values[1].min()


def rotated_rule(**more):
    return ResidualRule(direction=False, controller=False, orthogonalised=[], rotated=["matrix"], **more)
