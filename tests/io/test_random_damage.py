"""Random damage: thousands of mutated folders either load and are finite, or are refused; nothing else happens."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from rule_folders import CONFIG, RULES_TO_SAVE, WEIGHTS, pack, trained

from lightning_lopt import load_rule, save_rule
from lightning_lopt.io import RuleFileError

TOKENS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\ud800", b"\0", b"\xff", b"\n", b"-", b"0", b"1e999"]
TOKENS += [b"NaN", b"null", b"true", b"9" * 30, b'"F64"', b'"BOOL"', b'"I64"', b'"__metadata__":{},', b"[0,4]", b"{}"]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """``data`` with one to four small changes, most of them near the start, where headers are."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        end = len(data) if draw.random() < 0.5 else min(len(data), 400)
        start = draw.randrange(end + 1)
        stop = min(len(data), start + draw.choice([1, 1, 1, 2, 4, 8, 50]))
        kind = draw.randrange(7)
        if kind == 0 and data:
            start = min(start, len(data) - 1)
            middle, stop = bytes([data[start] ^ 1 << draw.randrange(8)]), start + 1
        elif kind == 1:
            middle = draw.randbytes(stop - start)
        elif kind == 2:
            middle = b""
        elif kind == 3:
            middle = 2 * data[start:stop]
        elif kind == 4:
            middle, stop = draw.choice(TOKENS), start
        elif kind == 5:
            middle = draw.choice(TOKENS)
        else:
            middle, stop = b"", len(data) if draw.random() < 0.2 else start
        data = data[:start] + middle + data[stop:]
    return data


VALUES = [None, True, False, 0, 1, -1, 4, 8, 16, 10**7, 10**18, 0.5, 1e-300, 1e300, "", "F64", "I32", "BOOL", [], {}]
VALUES += [[0, 0], [0, 4], [4], [1, 1, 1], ["matrix"], [[[]]], [0.9, 0.999], {"a": 1}, "sgd", "residual", 2.0, "cosine"]


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """A JSON object with one to three of its entries, at any depth, given another value, removed or renamed."""
    top = json.loads(data)
    for _ in range(draw.choice([1, 1, 2, 3])):
        place = top
        while (inner := [value for value in place.values() if isinstance(value, dict)]) and draw.random() < 0.7:
            place = draw.choice(inner)
        key = draw.choice(list(place) or ["x"])
        kind = draw.randrange(6)
        if kind == 0:
            place.pop(key, None)
        elif kind == 1:
            place[draw.choice([*top, "x", "../x", "__class__", "lr"])] = place.pop(key, None)
        elif kind == 2 and isinstance(place.get(key), list) and place[key]:
            place[key] = [*place[key], draw.choice([*place[key], *VALUES])]
        else:
            place[key] = copy.deepcopy(draw.choice(VALUES))
    return json.dumps(top).encode()


def mutate_header(data: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    return pack(mutate_json(data[8 : 8 + length], draw), data[8 + length :])


@pytest.mark.parametrize("name", ["sgd", "adam-cosine", "residual-hand-designed"])
def test_random_damage(name, tmp_path):
    folder = save_rule(trained(RULES_TO_SAVE[name]), tmp_path / name)
    outcomes = attack(folder, rounds=700, seed=len(name))
    assert outcomes["loaded"] > 20
    assert outcomes["refused"] > 500
    assert len(outcomes) > 30  # different reasons


def attack(folder: Path, rounds: int, seed: int) -> Counter[str]:
    draw = random.Random(seed)
    config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
    digest = hashlib.sha256(weights).hexdigest().encode()
    outcomes: Counter[str] = Counter()
    for _ in range(rounds):
        new_config, new_weights = config, weights
        if draw.random() < 0.7:
            new_weights = draw.choice([mutate, mutate_header])(weights, draw)
            if draw.random() < 0.9:  # else the SHA-256 alone would refuse all of these
                new_config = config.replace(digest, hashlib.sha256(new_weights).hexdigest().encode())
        if new_weights is weights or draw.random() < 0.2:
            new_config = draw.choice([mutate, mutate_json])(new_config, draw)
        (folder / CONFIG).write_bytes(new_config)
        (folder / WEIGHTS).write_bytes(new_weights)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                rule = load_rule(folder)
        except RuleFileError as error:
            message = str(error)
            assert message.isprintable()
            assert len(message) < 1000
            outcomes["refused"] += 1
            outcomes[message.removeprefix("the header of ").removeprefix(str(folder))[:40]] += 1
        else:
            assert all(torch.isfinite(tensor).all() for tensor in rule.state_dict().values())
            outcomes["loaded"] += 1
        assert time.process_time() - start < 2.0
    return outcomes
