"""What tells a trained tensor from a new one, and what careful rules make of it."""

import pytest
import torch
from torch import nn
from torch.func import vmap

from lightning_lopt import LearnedOptimizer, ResidualRule, StepContext, load_rule
from lightning_lopt.rules.residual_parts.structure import Signs, chance_excess, excess, signs_of, trained

INITS = {
    "uniform": lambda x: nn.init.kaiming_uniform_(x, a=5**0.5),
    "normal": nn.init.normal_,
    "truncated": nn.init.trunc_normal_,
    "orthogonal": nn.init.orthogonal_,
    "positive": nn.init.uniform_,
    "constant": lambda x: nn.init.constant_(x, 0.1),
    "zeros": nn.init.zeros_,
    "heavy tails": lambda x: x.copy_(torch.distributions.StudentT(3.0).sample(x.shape)),
    "rows of other scales": lambda x: nn.init.normal_(x).mul_(torch.linspace(0.1, 3.0, len(x))[:, None]),
}


def shown(params, roles, repetition=0.0):
    signs = [signs_of(param, roles.get(name, "matrix")) for name, param in params.items()]
    found = trained(Signs(*map(torch.stack, zip(*signs, strict=True))), repetition)
    return dict(zip(params, found.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(8, 8), (16, 64), (64, 16), (100, 100)])
@pytest.mark.parametrize("init", INITS)
def test_a_new_tensor_shows_nothing(init, shape):
    torch.manual_seed(0)
    with torch.no_grad():
        values = torch.stack([INITS[init](torch.empty(shape)) for _ in range(50)])
    assert float(vmap(excess)(values).max()) < float(chance_excess(torch.tensor(min(shape) * (min(shape) - 1) / 2)))


def test_chance_is_a_quantile_of_the_chi_squared_distribution():
    stats = pytest.importorskip("scipy.stats")
    for pairs in (28, 120, 2016):
        reached = pairs * (1 + float(chance_excess(torch.tensor(float(pairs), dtype=torch.float64))))
        assert stats.chi2.sf(reached, pairs) == pytest.approx(stats.norm.sf(4), rel=0.3)


@pytest.mark.parametrize("shape", [(32, 48), (16, 8, 3, 3)])
def test_the_excess_is_that_of_cosines(shape):
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = x.reshape(shape[0], -1) - x.mean()
    matrix = matrix / matrix.norm(dim=0)
    count, entries = matrix.shape
    squares = [float(torch.cosine_similarity(matrix[i], matrix[j], dim=0)) ** 2 for i in range(count) for j in range(i)]
    assert float(excess(x)) == pytest.approx(entries * sum(squares) / len(squares) - 1)


def test_of_large_tensors_a_block_is_looked_at():
    x = torch.randn(3000, 6)
    assert torch.equal(excess(x), excess(x[:1024]))


def test_training_shows_in_matrices():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    target = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 1)).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    roles = {"4.weight": "head"}
    params = {name: param.detach() for name, param in net.named_parameters()}
    assert set(shown(params, roles).values()) == {0.0}
    for _ in range(400):
        x = torch.randn(128, 16)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), 5 * target(x)).backward()
        optimizer.step()
    found = shown(params, roles)
    assert found["0.weight"] > 0.9
    assert found["0.bias"] > 0.9  # as trained as the matrices
    fresh = {**params, "4.weight": torch.randn(6, 32)}
    assert shown(fresh, roles)["4.weight"] == pytest.approx(0.5, abs=0.06)  # a new head on a trained body


def test_gains_that_are_not_equal_show_that_a_model_is_trained():
    torch.manual_seed(0)
    params = {"w": torch.randn(128, 64), "zero": torch.zeros(64, 8), "gain": torch.ones(64), "bias": torch.zeros(64)}
    assert set(shown(params, {}).values()) == {0.0}
    params["gain"] = 1 + 0.05 * torch.randn(64)
    assert set(shown(params, {}).values()) == {0.0}  # random gains: a trained bias would not be zero
    params["bias"] = 0.05 * torch.randn(64)
    assert shown(params, {}) == {"w": 1.0, "zero": 0.0, "gain": 1.0, "bias": 1.0}
    params |= {"other gain": 1 + 0.05 * torch.randn(32), "new bias": torch.full((64,), 0.5)}
    assert shown(params, {})["w"] == pytest.approx(1 / 3)  # 2 of 3 have moved


FRESH = {
    "regression": lambda: [nn.Linear(12, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2)],
    "binary classes": lambda: [nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)],
    "three classes": lambda: [nn.Linear(4, 3)],
    "small convolutions": lambda: [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 3)],
    "recurrent": lambda: [nn.GRU(3, 8), nn.Linear(8, 2)],
    "transformer": lambda: [nn.TransformerEncoderLayer(16, 2, 32), nn.Linear(16, 3)],
    "DCGAN": lambda: [nn.ConvTranspose2d(8, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 1, 4)],
}


@pytest.mark.parametrize("name", FRESH)
def test_new_networks_of_all_kinds_take_full_steps(name):
    torch.manual_seed(0)
    for _ in range(300):
        net = nn.Sequential(*FRESH[name]())
        if name == "DCGAN":  # https://arxiv.org/abs/1511.06434
            net.apply(lambda m: nn.init.normal_(m.weight, 1.0, 0.02) if isinstance(m, nn.BatchNorm2d) else None)
        params = {n: param.detach() for n, param in net.named_parameters()}
        head = [n for n, param in params.items() if param.ndim > 1][-1]
        assert max(shown(params, {head: "head"}).values()) < 0.01


def test_word_vectors_do_not_make_a_new_model_a_trained_one():
    torch.manual_seed(0)
    params = {"words": torch.randn(200, 8) @ torch.randn(8, 64), "w": torch.randn(64, 64), "bias": torch.zeros(64)}
    assert shown(params, {"words": "embedding"}) == {"words": 1.0, "w": 0.0, "bias": 0.0}


@pytest.mark.parametrize("rank", [1, 2, 8, 16])
def test_adapters_of_low_rank_belong_to_a_trained_model(rank):
    torch.manual_seed(0)
    adapters = {"0.a": torch.randn(rank, 128), "0.b": torch.zeros(96, rank)}
    adapters |= {"1.a": torch.randn(rank, 32, 3, 3), "1.b": torch.zeros(128, rank, 1, 1)}  # of a convolution
    assert set(shown(adapters, {}).values()) == {0.0}  # new, where nothing is said about the data
    assert list(shown(adapters, {}, 1.0).values()) == pytest.approx([0.6] * 4)
    assert shown(adapters, {}, 0.5)["0.b"] == pytest.approx(0.3)
    with_head = {**adapters, "head": torch.randn(5, 128), "bias": torch.zeros(5)}
    assert list(shown(with_head, {"head": "head"}, 1.0).values()) == pytest.approx([0.6] * 6)
    with_matrix = {**adapters, "full": torch.randn(64, 64), "other": torch.randn(64, 64)}
    assert set(shown(with_matrix, {}, 1.0).values()) == {0.0}  # pairs are two thirds of the matrices


def test_zeros_in_new_models_are_no_adapters():
    torch.manual_seed(0)
    gates = {f"{i}.qkv": torch.randn(192, 64) for i in range(4)} | {f"{i}.out": torch.randn(64, 64) for i in range(4)}
    gates |= {f"{i}.gate": torch.zeros(384, 64) for i in range(4)}  # of a diffusion transformer
    branches = {f"{i}.first": torch.randn(32, 32, 3, 3) for i in range(4)}
    branches |= {f"{i}.last": torch.zeros(32, 32, 3, 3) for i in range(4)}  # Zhang et al. 2019, arXiv:1901.09321
    wide = {"a": torch.randn(64, 256), "b": torch.zeros(256, 64)}  # bottlenecks of a residual network
    for params in (gates, branches, wide):
        assert set(shown(params, {}, 1.0).values()) == {0.0}


def test_steps_of_trained_tensors_are_shortened():
    torch.manual_seed(0)
    config = {"direction": False, "controller": False, "orthogonalised": []}
    params = {"new": torch.randn(64, 64), "trained": torch.randn(64, 2) @ torch.randn(2, 64)}
    params["trained"] *= params["new"].square().mean().sqrt() / params["trained"].square().mean().sqrt()
    grads = {name: torch.randn(64, 64) for name in params}
    context = StepContext(torch.tensor(0.0), torch.tensor(100.0))
    plain, careful = ResidualRule(**config), ResidualRule(**config, careful=3.0)
    (before, _), (after, _) = (rule(params, grads, rule.init_state(params, {}), context) for rule in (plain, careful))
    # the mean over the two says that the model is trained; a matrix of 64 vectors that shows nothing is a fifth like it
    torch.testing.assert_close(after["new"], before["new"] * torch.exp(torch.tensor(-3 / 5)))
    torch.testing.assert_close(after["trained"], before["trained"] * torch.exp(torch.tensor(-3.0)))


@pytest.mark.parametrize("careful", [-1.0, float("nan"), float("inf")])
def test_how_careful_is_a_number(careful):
    with pytest.raises(ValueError, match="careful must be a number >= 0 or None"):
        ResidualRule(careful=careful)


def test_base_keeps_what_a_transformer_has_learned():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(64, 32),
        nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True),
        nn.Linear(32, 64),
    )
    table = torch.randint(64, (64,))

    def loss_of(tokens):
        return nn.functional.cross_entropy(net(tokens).flatten(0, 1), table[tokens].flatten())

    def train(optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(torch.randint(64, (4, 16)))
            loss.backward()
            optimizer.step() if isinstance(optimizer, torch.optim.AdamW) else optimizer.step(loss)
            losses.append(loss.item())
        return losses

    before = train(torch.optim.AdamW(net.parameters(), 3e-3), 150)[-1]
    start = {name: value.clone() for name, value in net.state_dict().items()}
    assert before < 0.1
    moved = {}
    for careful in (True, False):
        net.load_state_dict(start)
        rule = load_rule("base")
        if not careful:
            rule.log_careful.data.zero_()
            rule.restraint.depth_power.data.zero_()
        losses = train(LearnedOptimizer(net, rule, total_steps=200), 40)
        body = "1.self_attn.in_proj_weight"
        moved[careful] = float((net.state_dict()[body] - start[body]).norm() / start[body].norm())
        assert not careful or max(losses) < 0.1
    assert moved[True] < 0.05
    assert moved[False] > 0.3


def test_steps_of_a_trained_network_are_divided_by_its_matrices_over_three():
    torch.manual_seed(0)
    config = {"direction": False, "controller": False, "orthogonalised": [], "careful": 3.0}
    params = {str(number): torch.randn(32, 2) @ torch.randn(2, 32) for number in range(12)}
    params |= {"b": torch.randn(8)}
    grads = {name: torch.randn_like(param) for name, param in params.items()}
    context, updates = StepContext(torch.tensor(0.0), torch.tensor(100.0)), []
    for rule in (ResidualRule(**config), ResidualRule(**config, depth_power=1.0)):
        updates.append(rule(params, grads, rule.init_state(params, {}), context)[0])
    for name in params:
        torch.testing.assert_close(updates[1][name], updates[0][name] / 4)
