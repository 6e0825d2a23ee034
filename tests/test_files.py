"""A file appears whole or not at all, and whether it can is known before."""

import ast
import os
from pathlib import Path

import pytest

from cips3d.errors import UserError
from cips3d.files import atomic_path, check_writable


def test_replaces_the_file_at_the_end(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for content in ("first", "second"):
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".txt"
            assert temporary.parent == target.parent
            temporary.write_text(content)
        assert target.read_text() == content
    assert os.listdir(target.parent) == ["a.txt"]


def test_looking_whether_a_file_can_be_written_leaves_nothing(tmp_path):
    (tmp_path / "old").write_text("old")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new" / "deep" / "a.txt")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "old" / "a.txt")
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


def test_an_ordinary_files_permissions(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    with atomic_path(tmp_path / "c") as temporary:
        temporary.unlink()  # as some writers do
        os.close(os.open(temporary, os.O_CREAT, 0o600))
    (tmp_path / "b").write_text("x")
    assert {(tmp_path / name).stat().st_mode for name in "ac"} == {(tmp_path / "b").stat().st_mode}


@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt(), UserError("own line")])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_os_errors_become_one_clear_line(tmp_path):
    with pytest.raises(UserError) as caught, atomic_path(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert str(caught.value).startswith(
        f"cannot write {tmp_path / 'a.txt'}: No space left on device; "
    )
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_hold_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "file" / "a.txt", os.devnull):
        with pytest.raises(UserError, match=r"^cannot write "), atomic_path(place) as temporary:
            temporary.write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert not os.path.isfile(os.devnull)


def test_follows_a_symbolic_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "x"


def test_text_is_utf8_whatever_the_locale():
    root = Path(__file__).parents[1]
    for path in [*root.glob("src/**/*.py"), *root.glob("*/*.py")]:
        if path.parent.name == "tests":
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                name = getattr(call.func, "attr", getattr(call.func, "id", None))
                texts = name in ("read_text", "write_text") or (
                    name == "open"
                    and isinstance(call.func, ast.Name)
                    and not any(isinstance(a, ast.Constant) and "b" in a.value for a in call.args)
                )
                named = any(keyword.arg == "encoding" for keyword in call.keywords)
                assert named or not texts, f"{path}:{call.lineno}"
