"""Recorded θ in the bytes that flax writes, imported from a file, makes the recorded run again."""

import pytest
import torch
from flax_files import pack, tree_of
from golden_runs import HERE, LEFT_OUT, NAMES, Recording, recording
from reference_rules import KINDS, reference_arguments
from test_recorded_runs import reference_rounding

from lightning_lopt import Celo2Rule, StepContext, load_rule
from lightning_lopt.io import convert_rule, import_rule

__all__ = ["reference_rounding"]  # a fixture

CELO2 = sorted(path.stem for path in HERE.glob("celo2*.npz"))


def opened(name):
    path = recording(name)
    if not path.exists():
        pytest.skip(LEFT_OUT)
    return Recording(path)


def trajectory(record, rule):
    """Parameters after each step, (step, name) to tensor."""
    roles = {}
    if isinstance(rule, Celo2Rule):
        roles = dict.fromkeys(record.names, "matrix") | {"bias": "vector", "embed": "embedding"}
    if not rule.rule_name.startswith("celo2"):
        return list(record.run(rule, torch.float64))
    params = record.tensors("param0/")
    state, found = rule.init_state(params, roles), []
    for step in range(record.steps):
        grads = {name: torch.tensor(record.data[f"grad/{name}"][step], dtype=torch.float64) for name in params}
        at = StepContext(torch.tensor(float(step)), torch.tensor(20.0), roles=roles)
        with torch.no_grad():
            updates, state = rule(params, grads, state, at)
        params = {name: params[name] + updates[name] for name in params}
        found.append((step, params, state))
    return found


@pytest.mark.parametrize("name", [*(name for names in NAMES.values() for name in names), *CELO2])
def test_imported_file_makes_the_recorded_run(name, tmp_path):
    record = opened(name)
    file, kind = tmp_path / "theta.state", KINDS[record.config["cls"]]
    file.write_bytes(pack(tree_of(record.theta())))
    known = None if kind not in ("celo2", "celo2_base") else kind
    imported = import_rule(file, rule=known, arguments=reference_arguments(record.config))
    start = record.tensors("param0/")
    for step, params, _ in trajectory(record, imported.double()):
        expected = record.tensors(f"f64/step{step:02d}/param/")
        for key, value in params.items():
            moved = (expected[key] - start[key]).abs().max()
            assert (value - expected[key]).abs().max() <= 1e-9 * moved, (step, key)


@pytest.mark.parametrize("name", ["adafac_mlp_h4", "celo_random_mix4", "rnn_mlp", "nn_adam", "celo2base"])
def test_conversion_is_exact(name, tmp_path):
    """Ours, written and read again, has the bits of the recorded θ."""
    record = opened(name)
    kind = KINDS[record.config["cls"]]
    (tmp_path / "theta.state").write_bytes(pack(tree_of(record.theta())))
    rule = import_rule(tmp_path / "theta.state", rule=kind)
    again = load_rule(convert_rule(tmp_path / "theta.state", to=tmp_path / "ours", rule=kind))
    assert again.config == rule.config
    ours = again.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in rule.state_dict().items())
    theta = torch.cat([value.flatten() for value in record.theta().values()]).sort().values
    found = torch.cat([value.flatten() for value in ours.values()]).sort().values
    if kind not in ("celo", "velo"):  # nothing reads some of theirs
        assert torch.equal(theta, found)
