"""Rules pushed to the Hub, with a stand-in for ``huggingface_hub`` that keeps what it is given and gives it back."""

import hashlib
import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from rule_folders import CARD, CONFIG, WEIGHTS, same

from lightning_lopt import AdamRule, Card, load_card, load_rule, save_rule
from lightning_lopt.cli import main
from lightning_lopt.io import RuleFileError, push_rule
from lightning_lopt.io.card import front_matter_of
from lightning_lopt.io.files import LIMITS


class Hub(ModuleType):
    """A server with repositories, as its client shows it; ``calls`` records what was asked."""

    def __init__(self, cache):
        super().__init__("huggingface_hub")
        self.cache, self.calls, self.token = cache, [], "hf_stand-in"
        self.repositories, self.private = {}, {}
        self.refusal = None
        self.HfApi = lambda: self

    def get_token(self):
        return self.token

    def CommitOperationAdd(self, path_in_repo, path_or_fileobj):
        return path_in_repo, path_or_fileobj

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        self.calls.append(("create_repo", repo_id, repo_type, private, exist_ok))
        if self.refusal is not None:
            raise self.refusal
        self.repositories.setdefault(repo_id, {})
        self.private.setdefault(repo_id, bool(private))

    def create_commit(self, repo_id, operations, *, commit_message, repo_type):
        self.calls.append(("create_commit", repo_id, [path for path, _ in operations], commit_message, repo_type))
        self.repositories[repo_id] |= dict(operations)
        return SimpleNamespace(oid=hashlib.sha1(repr(operations).encode()).hexdigest())

    def model_info(self, repo_id, *, revision=None, files_metadata=False):
        sizes = [SimpleNamespace(rfilename=n, size=len(data)) for n, data in self.repositories[repo_id].items()]
        return SimpleNamespace(sha=revision, siblings=sizes, private=self.private[repo_id])

    def hf_hub_download(self, repo_id, name, *, revision, local_files_only):
        self.cache.mkdir(exist_ok=True)
        (self.cache / name).write_bytes(self.repositories[repo_id][name])
        return str(self.cache / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    module = Hub(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_what_was_pushed_loads_again(hub, folder):
    (folder / "training.ckpt").write_bytes(b"pickled")
    (folder / "secrets.txt").write_text("mine")
    address = push_rule(folder, "user/my-rule", private=True, message="First")
    assert address.startswith("hf://user/my-rule@")
    assert hub.calls == [
        ("create_repo", "user/my-rule", "model", True, True),
        ("create_commit", "user/my-rule", [CARD, CONFIG, WEIGHTS], "First", "model"),
    ]
    stored = hub.repositories["user/my-rule"]
    assert stored.keys() == {CARD, CONFIG, WEIGHTS}
    assert all(stored[name] == (folder / name).read_bytes() for name in (CONFIG, WEIGHTS))
    assert same(load_rule(address), load_rule(folder))
    assert load_card("hf://user/my-rule") == stored[CARD].decode()


def test_save_and_push_in_one_call(hub, tmp_path):
    rule = AdamRule(0.02)
    assert save_rule(rule, tmp_path / "rule", push_to_hub="user/adam") == tmp_path / "rule"
    assert same(load_rule("hf://user/adam"), rule)
    assert same(load_rule(tmp_path / "rule"), rule)


def test_the_command(hub, folder, capsys):
    assert main(["push", str(folder), "user/my-rule", "--message", "Again"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("the rule was pushed; load it with load_rule('hf://user/my-rule@")
    assert printed.err == ""
    assert hub.calls[0][3] is None
    assert hub.calls[1][3] == "Again"


@pytest.mark.parametrize(
    "card", [None, Card("Mine", licence="MIT"), "# Mine\n", "---\nlicense: mit\n---\n# Mine\n", ""]
)
def test_the_hub_renders_the_card(card, hub, tmp_path):
    """Its front matter is YAML with everything that the Hub reads; what the author wrote stays."""
    push_rule(save_rule(AdamRule(), tmp_path / "rule", card=card), "user/rule")
    pushed = hub.repositories["user/rule"][CARD].decode()
    said = yaml.safe_load(front_matter_of(pushed))
    assert said["library_name"] == "lightning_lopt"
    assert said["tags"] == ["learned-optimizer"]
    assert said["metrics"] == ["loss"]
    assert said["license"] == ("apache-2.0" if card is None else "other" if card in ("# Mine\n", "") else "mit")
    assert pushed.startswith("---\n")
    assert "\n---\n\n# " in pushed
    assert pushed.count("\n---\n") == 1


def test_embedded_weights_can_be_pushed(hub):
    push_rule("base", "user/base")
    assert same(load_rule("hf://user/base"), load_rule("base"))


def refusal(*arguments, **options):
    with pytest.raises(RuleFileError) as caught:
        push_rule(*arguments, **options)
    return str(caught.value)


def test_nothing_is_sent_that_could_not_be_loaded_again(hub, folder, monkeypatch):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    assert "model.safetensors" in refusal(folder, "user/rule")
    (folder / WEIGHTS).unlink()
    assert "model.safetensors is missing" in refusal(folder, "user/rule")
    assert hub.calls == []


@pytest.mark.parametrize("name", [CARD, CONFIG, WEIGHTS])
def test_sizes_are_checked(name, hub, folder, monkeypatch):
    monkeypatch.setitem(LIMITS, name, (folder / name).stat().st_size - 1)
    assert f"{name} is too large" in refusal(folder, "user/rule")
    assert hub.calls == []


def test_a_card_that_grows_too_large(hub, tmp_path, monkeypatch):
    folder = save_rule(AdamRule(), tmp_path / "rule", card="# Mine\n")
    monkeypatch.setitem(LIMITS, CARD, 50)
    assert "README.md is too large: " in refusal(folder, "user/rule")
    assert hub.calls == []


@pytest.mark.parametrize("text", ["a: [", "- a\n- b"])
def test_front_matter_that_is_none(text, hub, tmp_path):
    folder = save_rule(AdamRule(), tmp_path / "rule", card=f"---\n{text}\n---\n# Mine\n")
    assert "the front matter of " in refusal(folder, "user/rule")
    assert hub.calls == []


def test_without_a_token(hub, tmp_path, folder):
    hub.token = None
    sentence = (
        "user/rule was not pushed, because there is no token for the Hub; run 'hf auth login', or set HF_TOKEN to a "
        "token with write permission."
    )
    assert refusal(folder, "user/rule") == sentence
    with pytest.raises(RuleFileError, match="there is no token"):
        save_rule(AdamRule(), tmp_path / "new", push_to_hub="user/rule")
    assert not (tmp_path / "new").exists()
    assert hub.calls == []


def test_without_the_extra(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(folder), "user/rule"]) == 1
    assert capsys.readouterr().err == (
        'lightning-lopt: pushing needs huggingface_hub, which is not installed; run pip install -e ".[hub]" in the '
        "checkout of lightning_lopt.\n"
    )


def test_what_the_hub_refuses(hub, folder):
    hub.refusal = RuntimeError("403 Forbidden: you may not create under this name. Ask its owner.")
    said = refusal(folder, "user/rule")
    assert "was not pushed to hf://user/rule (403 Forbidden: you may not create under this name; Ask its owner)" in said
    assert said.endswith("; check the name, the network and the write permission of your token.")


def test_private_weights_never_go_to_a_public_repository(hub, folder):
    push_rule(folder, "user/rule")
    hub.calls.clear()
    assert "exists and is public" in refusal(folder, "user/rule", private=True)
    assert [call[0] for call in hub.calls] == ["create_repo"]


@pytest.mark.parametrize(
    "name", ["rule", "user/rule/more", "user/rule@main", "hf://user/rule", "user/../rule", "", None]
)
def test_other_names_are_refused_first(name, hub, folder):
    assert "is not the name of a repository on the Hub; write owner/name, as in user/my-rule." in refusal(folder, name)
    assert "is on the Hub already" in refusal("hf://user/rule", "user/other")
    assert hub.calls == []


def test_the_stand_in_is_called_as_the_library_can_be():
    library = pytest.importorskip("huggingface_hub", reason="huggingface_hub, an optional extra, is not installed")
    api = library.HfApi
    inspect.signature(api.create_repo).bind(api, "user/rule", repo_type="model", private=None, exist_ok=True)
    add = library.CommitOperationAdd("README.md", b"# Mine\n")
    inspect.signature(api.create_commit).bind(api, "user/rule", [add], commit_message="a", repo_type="model")
    assert inspect.signature(library.get_token).bind()
