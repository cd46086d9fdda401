"""``lightning-lopt benchmark``: counts against closed forms, and the command from its arguments to its files."""

import json

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, MuonRule, load_rule
from lightning_lopt.cli import main
from lightning_lopt.evaluation.benchmark.device_limits import DeviceLimits, measured_limits
from lightning_lopt.evaluation.benchmark.measure import measure
from lightning_lopt.evaluation.benchmark.memory import measured_memory
from lightning_lopt.evaluation.benchmark.operations import operations_of
from lightning_lopt.evaluation.benchmark.optimizers import PEERS, REFERENCE, Contender, rule_contender
from lightning_lopt.evaluation.benchmark.results import Figures, ModelResult
from lightning_lopt.evaluation.benchmark.rule_memory import rule_memory
from lightning_lopt.evaluation.benchmark.workloads import RECIPES, Workload, named_workload

CPU = torch.device("cpu")
USERS_MODULE = """
import torch
from lightning.pytorch import LightningModule


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 3)), 4)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())
"""


def small_workload():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return Workload("small", module, lambda: torch.randn(5, 6), lambda batch: module(batch).square().mean())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vit_b", 86_567_656), ("gpt2", 124_439_808), ("gpt2_medium", 354_823_168), ("resnet50", 25_557_032)],
)
def test_models_have_as_many_parameters_as_published(name, parameters):
    with torch.device("meta"):
        module = RECIPES[name].build()
    assert sum(param.numel() for param in module.parameters()) == parameters


@pytest.mark.parametrize("name", ["char_transformer", "linear_512", "cnn", "many_tensors"])
def test_named_workloads_have_gradients_everywhere(name):
    workload = named_workload(name, CPU, batch=2)
    workload.loss(workload.batch()).backward()
    assert all(leaf.grad is not None for _, leaf, _ in workload.leaves)
    again = named_workload(name, CPU, batch=2)
    assert all(torch.equal(a, b) for (_, a, _), (_, b, _) in zip(workload.leaves, again.leaves, strict=True))


def test_length_of_texts():
    workload = named_workload("char_transformer", CPU, batch=2, length=5)
    assert [tuple(x.shape) for x in workload.batch()] == [(2, 5), (2, 5)]
    with pytest.raises(ValueError, match="'cnn' does not read text"):
        named_workload("cnn", CPU, length=5)


def test_images_are_classified():
    with torch.device("meta"):
        assert RECIPES["vit_b"].build()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        assert RECIPES["resnet50"].build()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


def test_memory_is_that_of_the_equations():
    """AdamW keeps two tensors and needs one more at a time; fused, none."""
    layer = nn.Linear(300, 200, bias=False)
    layer(torch.ones(1, 300)).sum().backward()
    for how, peak in ({"foreach": True}, 4.0), ({"fused": True}, 0.0):
        _, memory = measured_memory(lambda how=how: torch.optim.AdamW(layer.parameters(), **how).step, 3, CPU)
        assert memory.state / 60_000 == pytest.approx(8.0, abs=0.01)
        assert memory.peak / 60_000 == pytest.approx(peak, abs=0.01)


def test_peak_is_counted_from_the_beginning_of_each_step():
    """State that is replaced at each step is state once, and once more while both are there; the first step is left
    out."""

    def build():
        kept = [torch.zeros(1000), 0]

        def step():
            kept[0] = kept[0] + 1  # 4,000 bytes beside the old ones
            if kept[1] == 0:
                torch.zeros(100_000)
            kept[1] += 1

        return step

    _, memory = measured_memory(build, 4, CPU)
    assert memory.state == pytest.approx(4000, abs=200)
    assert memory.peak == pytest.approx(4000, abs=200)


def test_operations_are_counted_by_type_and_under_vmap():
    left, right = torch.ones(3, 4, 5), torch.ones(3, 5, 6)
    assert operations_of(lambda: torch.vmap(torch.mm)(left, right)) == {"float32": 3 * 2 * 4 * 5 * 6}
    assert operations_of(lambda: left[0].bfloat16() @ right[0].bfloat16()) == {"bfloat16": 2 * 4 * 5 * 6}
    assert operations_of(lambda: left + 1) == {}


def test_operations_of_newton_schulz():
    """Five steps of 2 (2 r² n + r³) on an r x n matrix, by the rule and by torch's optimizer."""
    module = nn.Sequential(nn.Linear(12, 7, bias=False), nn.Linear(7, 7, bias=False))
    workload = Workload("two", module, lambda: torch.ones(2, 12), lambda batch: module(batch).square().mean())
    peers = {REFERENCE: PEERS[REFERENCE], "rule": rule_contender(MuonRule(1e-3), 100)}
    peers |= {"muon": PEERS["muon"]} if hasattr(torch.optim, "Muon") else {}
    result = measure(workload, peers, repeats=2)
    expected = 5 * 2 * (2 * 7**2 * 12 + 7**3)  # the head is left to Adam
    assert all(sum(each.flops.values()) == expected for each in result.figures[1:])
    assert result.reference.flops == {}


def test_measure():
    workload = small_workload()
    before = [leaf.detach().clone() for _, leaf, _ in workload.leaves]

    def thief(leaves, loss):
        def step():
            for _, leaf, _ in leaves:
                leaf.grad = None

        return step

    def broken(leaves, loss):
        raise RuntimeError("no kernel")

    contenders = {
        REFERENCE: PEERS[REFERENCE],
        "pylo": PEERS["pylo"],
        "thief": Contender(thief),
        "broken": Contender(broken),
        "base": rule_contender(load_rule("base"), 100),
    }
    result = measure(workload, contenders, repeats=3)
    assert [each.name for each in result.figures] == [REFERENCE, "base"]
    assert set(result.left_out) == {"pylo", "thief", "broken"}
    assert result.left_out["broken"] == "RuntimeError: no kernel"
    assert "deletes the gradients" in result.left_out["thief"]
    assert (result.parameters, result.tensors) == (6 * 8 + 8 + 8 * 4 + 4, 4)
    assert len(result.gradient) == 3
    assert all(len(each.seconds) == 3 and each.state > 0 and each.peak > 0 for each in result.figures)
    assert result.ratio(result.reference) == 1.0
    assert all(torch.equal(x, leaf) for x, (_, leaf, _) in zip(before, workload.leaves, strict=True))
    with pytest.raises(ValueError, match="add it to the optimizers"):
        measure(workload, {"base": contenders["base"]}, repeats=1)


def test_ratios_and_floors():
    reference = Figures(REFERENCE, (1.0, 1.0, 4.0), {}, 20, 8.0, 4.0)
    ours = Figures("ours", (2.0, 3.0, 10.0), {"float32": 60.0, "bfloat16": 40.0}, 30, 12.0, 2.0)
    result = ModelResult("model", 5, 1, (4.0, 4.0, 5.0), (reference, ours), {})
    assert (result.ratio(ours), result.ratio_of_means(ours)) == (3.0, 2.5)
    assert result.training_ratio(ours) == (4.0 + 5.0) / (4.0 + 2.0)
    assert result.share(ours) == 5.0 / 9.0
    limits = DeviceLimits({"float32": 30.0, "bfloat16": 80.0}, 10.0)
    assert limits.seconds_of_products(ours.flops) == 2.5
    assert limits.seconds_of_bytes(ours.moved) == 3.0
    assert ours.floor(limits) == 3.0
    entry = result.to_json(limits)["optimizers"][1]
    assert (entry["median_seconds"], entry["mean_seconds"], entry["worst_seconds"]) == (3.0, 5.0, 10.0)
    assert (entry["flops"], entry["bytes"]) == (100.0, 30)


def test_limits_of_this_device():
    limits = measured_limits(CPU, side=64, scaled=2**16)
    assert set(limits.products) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in (*limits.products.values(), limits.bandwidth))


def test_memory_of_a_rule():
    """Adam as a rule keeps two tensors; what it needs besides is less than a few copies of all parameters."""
    state, peak = rule_memory(AdamRule())["float32"]
    assert state == pytest.approx(8.0, rel=0.01)
    assert 0 < peak < 40


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USERS_MODULE)
    arguments = ["benchmark", "mine.py:Model", "cnn", "--batch", "2", "--optimizers", "muon", "pylo", "--repeats", "2"]
    assert main([*arguments, "--out", "a b"]) == 0
    printed = capsys.readouterr().out
    assert "mine.py:Model: 8e-06 million parameters in 2 tensors" in printed
    assert "cnn: 0.057 million parameters in 8 tensors" in printed
    assert "pylo is left out: import pylo.optim failed" in printed
    written = json.loads((tmp_path / "a b" / "benchmark.json").read_text())
    assert written["command"].endswith("--out 'a b'")
    assert [model["model"] for model in written["models"]] == ["mine.py:Model", "cnn"]
    names = [entry["optimizer"] for entry in written["models"][1]["optimizers"]]
    assert [name for name in names if name != "muon"] == [REFERENCE, "base"]
    assert (tmp_path / "a b" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "there is no model 'nothing'"),
        (["nowhere.py:Model"], "there is no file 'nowhere.py'"),
        (["cnn", "--repeats", "0"], "repeats must be at least 1"),
        (["cnn", "--device", "nowhere"], "no device 'nowhere' can be used here"),
        (["cnn", "--rules", "nothing"], "neither a folder nor an embedded rule"),
        (["cnn", "--rules", "muon", "--optimizers", "muon"], "are both called 'muon'"),
    ],
)
def test_errors_are_sentences(arguments, says, capsys):
    assert main(["benchmark", *arguments]) == 2
    assert says in capsys.readouterr().err
