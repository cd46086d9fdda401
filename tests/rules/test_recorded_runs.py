"""Rules of others against their own implementations' numbers."""

import pytest
import torch
from golden_runs import LEFT_OUT, NAMES, Recording, recording
from reference_rules import reference_rule

from lightning_lopt.rules import rnn_mlp
from lightning_lopt.rules.shared.recurrent import LSTM

recorded = pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])

# What the reference calls a tensor's state, and ours; there the decays are the last axis.
AVERAGES = {"m": "momentum", "v": "second_moment", "row": "rows", "col": "columns", "diag": "diagonal"}
OTHERS = {"from_mlp": "from_network"}


@pytest.fixture(autouse=True)
def reference_rounding(monkeypatch):
    """RNN-MLP sees signs of means. In its recording six clipped entries cancel at one step, and the sign the reference
    saw is that of its rounding errors; ours is 0."""

    def mean(x):
        exact = x.double().mean()
        cancelled = exact.abs() <= 1e-6 * x.abs().max()
        return torch.where(cancelled, -1e-12 * x.abs().max(), exact).to(x.dtype)

    monkeypatch.setattr(rnn_mlp, "_mean", mean)


def opened(name):
    path = recording(name)
    if not path.exists():
        pytest.skip(LEFT_OUT)
    return Recording(path)


def runs(record, dtype, rule=None):
    rule = rule or reference_rule(record, dtype)
    return record.run(rule, dtype)


@recorded
def test_same_parameters_in_float64(name):
    record = opened(name)
    start = record.tensors("param0/")
    for step, params, _ in runs(record, torch.float64):
        expected = record.tensors(f"f64/step{step:02d}/param/")
        for key, value in params.items():
            moved = (expected[key] - start[key]).abs().max()
            assert (value - expected[key]).abs().max() <= 1e-9 * moved, (step, key)


@recorded
def test_same_parameters_in_float32(name):
    """As the reference in float64, and in float32 beside that one's own rounding errors."""
    record = opened(name)
    start = record.tensors("param0/")
    for step, params, _ in runs(record, torch.float32):
        exact, rounded = (record.tensors(f"{precision}step{step:02d}/param/") for precision in ("f64/", ""))
        for key, value in params.items():
            moved = (exact[key] - start[key]).abs().max()
            rounding = 6e-7 * exact[key].abs().max()  # of the parameters themselves, whatever the step
            assert (value - exact[key]).abs().max() <= 2e-5 * moved + rounding, (step, key)
            theirs = (rounded[key] - exact[key]).abs().max()
            assert (value - rounded[key]).abs().max() <= 2e-5 * moved + rounding + theirs, (step, key)


@recorded
@torch.no_grad()
def test_same_state(name):
    record = opened(name)
    compared, start = set(), record.tensors("param0/")
    rule = reference_rule(record)
    for step, _, state in runs(record, torch.float64, rule):
        for key, expected in record.tensors(f"f64/step{step:02d}/state/").items():
            if key in ("t", "loss_buffer/decays"):  # no state of ours
                continue
            ours = our_state(rule, record, state, key)
            kind, _, tensor = key.partition("/")
            if kind in AVERAGES and ours.ndim and ours.shape != start[tensor].shape and expected.ndim:
                expected = expected.movedim(-1, 0)
            scale = expected.abs().max()
            assert ours.numel() == expected.numel(), key
            difference = (ours.reshape(expected.shape) - expected).abs().max()
            assert difference <= 1e-9 * scale, (step, key)
            compared.add(key)
    assert len(compared) >= len(record.names)


def our_state(rule, record, state, key):
    """Our tensor for one of the reference's."""
    kind, _, name = key.partition("/")
    if kind == "loss_buffer":
        return {
            "means": state.shared.get("loss_means"),
            "running_min": state.shared.get("loss_minima"),
            "iteration": state.shared.get("loss_count"),
        }[name]
    if kind in ("train_loss_accum", "valid_loss_accum"):
        return state.shared[f"{kind[:5]}_loss"][["mean", "var", "updates"].index(name)]
    if kind == "dynamic_clip":
        return state.shared["clip"][["value", "iteration"].index(name)]
    if kind.startswith("per_layer"):
        return state.tensors[name]["constants"][["lr", "beta1", "beta2", "epsilon"].index(kind[len("per_layer_") :])]
    if kind == "from_lstm":
        return state.shared["from_lstm"]
    if kind in ("lstm_h", "lstm_c"):
        recalled = [lstm_of(rule).recall(state.tensors[name]) for name in record.names]
        hidden, cell = (torch.stack(rows) for rows in zip(*recalled, strict=True))
        return hidden if kind == "lstm_h" else cell
    return state.tensors[name][(AVERAGES | OTHERS)[kind]]


def lstm_of(rule):
    (lstm,) = (module for module in rule.modules() if isinstance(module, LSTM))
    return lstm


FLAT = [names[0] for cls, names in NAMES.items() if cls not in ("MLPLOpt", "NNAdam")]


@pytest.mark.parametrize("name", FLAT)
def test_a_linear_layer_is_the_references_transposed(name):
    """(out, in) by default against (in, out): the transposed steps, ties included."""
    record = opened(name)
    record.data = {key: x for key, x in record.data.items() if not key.startswith("param0/") or x.ndim < 3}
    ours = reference_rule(record)
    theirs = list(record.run(reference_rule(record), torch.float64))
    ours.matrix = "flat"
    square = False
    for (_, params, _), (_, expected, _) in zip(
        record.run(ours, torch.float64, turn=lambda x: x.mT if x.ndim == 2 else x), theirs, strict=True
    ):
        for key, value in params.items():
            torch.testing.assert_close(value.mT if value.ndim == 2 else value, expected[key], rtol=1e-9, atol=1e-12)
            square |= value.ndim == 2 and len(set(value.shape)) == 1
    assert square
