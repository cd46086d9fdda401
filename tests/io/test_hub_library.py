"""The real ``huggingface_hub``, without a network: a cache of an earlier download, made by hand in its format.

In a process of its own, as the library reads its settings when it is imported.
"""

import hashlib
import os
import subprocess
import sys

import pytest
from rule_folders import CONFIG, WEIGHTS

pytest.importorskip("huggingface_hub", reason="huggingface_hub, an optional extra, is not installed")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMPARE = """
import sys, torch
from lightning_lopt import load_rule
plain = load_rule(sys.argv[1])
for source in sys.argv[2:]:
    rule = load_rule(source)
    assert rule.config == plain.config
    assert all(torch.equal(x, y) for x, y in zip(rule.parameters(), plain.parameters(), strict=True)), source
print("same")
"""


def cached(folder, cache):
    """One repository: files named by their content, linked from the snapshot of a commit that ``main`` stands for."""
    home = cache / "models--somebody--rule"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for name in (CONFIG, WEIGHTS):
        content = (folder / name).read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return home


def python(cache, code, *arguments):
    settings = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_an_earlier_download_is_enough(folder, tmp_path):
    cached(folder, tmp_path / "cache")
    address = "hf://somebody/rule"
    done = python(tmp_path / "cache", COMPARE, folder, address, f"{address}@main", f"{address}@{COMMIT}")
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("source", ["hf://somebody/other", "hf://somebody/rule@v2"])
def test_what_was_never_downloaded_is_refused_with_a_sentence(folder, tmp_path, source):
    cached(folder, tmp_path / "cache")
    done = python(tmp_path / "cache", "import sys, lightning_lopt as l; l.load_rule(sys.argv[1])", source)
    assert done.returncode == 1
    assert f"RuleFileError: {source}/{CONFIG} could not be downloaded" in done.stderr
