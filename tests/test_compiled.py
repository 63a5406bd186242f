"""Compiled programs are kept where the user keeps caches, unless that is not wanted."""

import os
import types

import pytest

from recursia import compiled


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user's cache directory, and no word about another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiled.VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(compiled.VARIABLE)
    monkeypatch.setattr(compiled, "sys", types.SimpleNamespace(modules={}))  # jax keeps its own
    return tmp_path


def test_programs_are_kept_in_the_users_cache_directory(home):
    assert compiled.where() is None
    folder = compiled.use()
    assert folder.parent == home / "recursia" / "compiled" and folder.is_dir()
    assert compiled.where() == folder and os.environ[compiled.VARIABLE] == str(folder)


def test_another_kind_of_cpu_has_another_folder(home, monkeypatch):
    ours = compiled.default()
    monkeypatch.setattr(compiled, "_cpu", lambda: "other")
    assert compiled.default() != ours


def test_without_a_cache_directory_it_is_under_home(home, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(home / "user"))
    assert compiled.use().is_relative_to(home / "user" / ".cache" / "recursia" / "compiled")


def test_a_folder_that_is_named_is_taken(home, monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, str(home / "mine"))
    assert compiled.use() == home / "mine"


def test_it_can_be_turned_off(home):
    assert compiled.use(is_on=False) is None
    assert not (home / "recursia").exists() and os.environ[compiled.VARIABLE] == ""


def test_a_folder_that_cannot_be_written_is_no_error(home, capsys):
    (home / "recursia").write_text("a file stands here")
    assert compiled.use() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "compiled programs cannot be kept here" in line
