"""Files of the user: each file is a module of its own, and is run once as long as it does not change."""

import pickle
import sys

import pytest

from lightning_lopt.user_files import import_again, imported_files, load_named

CODE = """
import pathlib
with open(pathlib.Path(__file__).parent / "runs.txt", "a") as log:
    log.write("x")

class Model:
    kind = "KIND"
"""


def model_of(folder, kind):
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(CODE.replace("KIND", kind))
    return load_named(f"{folder}/model.py:Model")


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path):
    first, second = model_of(tmp_path / "a", "first"), model_of(tmp_path / "b", "second")
    assert (first.kind, second.kind) == ("first", "second")
    assert first.__module__ != second.__module__
    for model in (first, second):
        assert type(pickle.loads(pickle.dumps(model()))) is model
        assert sys.modules[model.__module__].Model is model
    assert {(tmp_path / name / "model.py").resolve() for name in "ab"} <= set(imported_files().values())


def test_a_file_is_run_once_and_again_only_after_a_change(tmp_path):
    first = model_of(tmp_path, "first")
    assert load_named(f"{tmp_path}/model.py:Model") is first
    import_again({name: file for name, file in imported_files().items() if file.parent == tmp_path.resolve()})
    assert (tmp_path / "runs.txt").read_text() == "x"
    assert model_of(tmp_path, "changed").kind == "changed"
    assert (tmp_path / "runs.txt").read_text() == "xx"
    assert type(pickle.loads(pickle.dumps(first()))) is first


def test_a_file_that_fails_leaves_nothing_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"broken.py cannot be imported \(SystemExit: 3\)"):
        load_named(f"{tmp_path}/broken.py:Model")
    assert set(sys.modules) == before
    with pytest.raises(ValueError, match=r"gone\.py cannot be read"):
        import_again({"gone": tmp_path / "gone.py"})
