"""Rules on the Hub, with a stand-in for ``huggingface_hub``: what is asked of it, and what may go wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rule_folders import CARD, CONFIG, WEIGHTS, same

from lightning_lopt import load_rule
from lightning_lopt.io import RuleFileError, load_card
from lightning_lopt.io.files import LIMITS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ModuleType):
    """One repository on a server, and a cache of links as that of the real library."""

    def __init__(self, files: Path, cache: Path) -> None:
        super().__init__("huggingface_hub")
        self.files, self.cache = files, cache
        self.sizes = {path.name: path.stat().st_size for path in files.iterdir()}
        self.sha: str | None = COMMIT
        self.online, self.calls = True, []
        self.HfApi = lambda: self
        cache.mkdir()

    def model_info(self, repo, *, revision=None, files_metadata=False):
        self.calls.append(("info", repo, revision))
        assert files_metadata
        if not self.online:
            raise ConnectionError("the Hub cannot be reached. Try later.")
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.sizes.items()]
        return SimpleNamespace(sha=self.sha, siblings=siblings)

    def hf_hub_download(self, repo, name, *, revision=None, local_files_only=False):
        self.calls.append((name, repo, revision))
        assert local_files_only is not self.online
        target = self.cache / "snapshots" / name
        if not target.exists():
            if local_files_only:
                raise FileNotFoundError("not in the cache")
            (self.cache / "blobs").mkdir(exist_ok=True)
            (self.cache / "snapshots").mkdir(exist_ok=True)
            shutil.copy(self.files / name, self.cache / "blobs" / name)
            target.symlink_to(Path("..") / "blobs" / name)
        return str(target)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    module = Hub(folder, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def refusal(source, load=load_rule) -> str:
    with pytest.raises(RuleFileError) as caught:
        load(source)
    return str(caught.value)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "refs/pr/1", COMMIT[:8]])
def test_all_files_come_from_the_one_commit_that_the_revision_means(revision, hub, folder):
    source = "hf://owner/my.rule-1" + (f"@{revision}" if revision else "")
    assert same(load_rule(source), load_rule(folder))
    repo = "owner/my.rule-1"
    assert hub.calls == [("info", repo, revision), (CONFIG, repo, COMMIT), (WEIGHTS, repo, COMMIT)]
    assert load_card(source) == (folder / CARD).read_text()
    assert hub.calls[3:] == [("info", repo, revision), (CARD, repo, COMMIT)]


def test_without_a_commit_the_revision_is_passed_on(hub):
    hub.sha = None
    load_rule("hf://owner/rule@v2")
    assert [call[2] for call in hub.calls] == ["v2"] * 3


def test_missing_file_is_named_and_nothing_is_downloaded(hub):
    del hub.sizes[CONFIG]
    message = refusal("hf://owner/rule@v1")
    assert message == (
        "hf://owner/rule@v1/config.json is missing; check that owner/rule contains a rule saved by lightning_lopt."
    )
    assert [call[0] for call in hub.calls] == ["info"]
    hub.sizes.clear()
    assert "README.md is missing" in refusal("hf://owner/rule", load_card)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_too_large_file_is_not_downloaded(name, hub):
    hub.sizes[name] = LIMITS[name] + 1
    message = refusal("hf://owner/rule")
    assert (
        f"hf://owner/rule/{name} is too large: it has {LIMITS[name] + 1} bytes, and the limit is {LIMITS[name]}"
        in message
    )
    assert name not in [call[0] for call in hub.calls]


def test_file_larger_than_announced_is_not_read(hub, folder):
    hub.sizes[CONFIG] = None
    (folder / CONFIG).write_bytes(b" " * (LIMITS[CONFIG] + 1))
    assert "hf://owner/rule/config.json is too large" in refusal("hf://owner/rule")


def test_files_from_the_hub_are_checked_as_any_others(hub, folder):
    (folder / WEIGHTS).write_bytes(b"\x80\x04.")
    assert "hf://owner/rule/model.safetensors is not an intact safetensors file" in refusal("hf://owner/rule")


def test_pending_weights_are_a_matter_of_local_folders(hub, folder):
    (folder / WEIGHTS).rename(folder / "model.safetensors.next")
    (folder / WEIGHTS).write_bytes(b"")
    assert "it has 0 bytes" in refusal("hf://owner/rule")


def test_offline_the_cache_is_used(hub, folder):
    online = load_rule("hf://owner/rule@v1")
    hub.online = False
    hub.calls.clear()
    assert same(load_rule("hf://owner/rule@v1"), online)
    assert hub.calls == [(name, "owner/rule", "v1") for name in ("info", CONFIG, WEIGHTS)]


def test_offline_without_a_cache(hub):
    hub.online = False
    assert refusal("hf://owner/rule") == (
        "hf://owner/rule/config.json could not be downloaded (the Hub cannot be reached; Try later); "
        "check the address, the network and, for a private repository, your login."
    )


def test_download_that_breaks_off(hub, folder):
    (folder / CONFIG).unlink()
    assert "hf://owner/rule/config.json could not be downloaded ([Errno 2] No such file" in refusal("hf://owner/rule")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "owner",
        "owner/",
        "/rule",
        "owner/rule/more",
        "owner/rule@",
        "owner/rule@a@b",
        "owner/rule@../x",
        "owner/rule@a/../b",
        "owner/rule@-x",
        "owner/rule@a//b",
        "../rule",
        "owner/..",
        "owner/a..b",
        "owner/.hidden",
        "-owner/rule",
        "owner/rule\n",
        "owner/rule?x=1",
        "owner/rule#x",
        "user:password@host/rule",
        "owner/rü",
        "owner/" + "a" * 97,
        "owner/a\0b",
        "owner\\rule",
    ],
)
def test_other_addresses_are_refused_before_anything_is_asked(address, hub):
    message = refusal(f"hf://{address}")
    assert "is not an address on the Hub; write hf://owner/name or hf://owner/name@revision." in message
    assert message.isprintable()
    assert not hub.calls


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refusal("hf://owner/rule")
    assert message == (
        'hf://owner/rule is on the Hugging Face Hub, which needs huggingface_hub; run pip install -e ".[hub]" in the '
        "checkout of lightning_lopt."
    )
