"""Missing files among many, by a listing of each folder."""

import os

import pytest

from defcn_d2.data.readers.missing_files import missing_files


def test_as_asked_one_by_one(tmp_path, monkeypatch):
    for name in ("a.jpg", "b/c.jpg", "b/d/e.jpg", "b/d/A.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = ["a.jpg", "A.jpg", "b/c.jpg", "b/x.jpg", "b/d/e.jpg", "b/d/a.jpg", "b/../a.jpg"]
    files = [str(tmp_path / name) for name in names]
    absent = [file for file in files if not os.path.exists(file)]
    assert missing_files(files) == absent and len(absent) == 3
    monkeypatch.chdir(tmp_path)
    assert missing_files(names) == ["A.jpg", "b/x.jpg", "b/d/a.jpg"]


def test_addresses_are_not_asked():
    assert missing_files(["https://example.org/a.jpg"]) == []


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        missing_files([str(tmp_path / "none" / "a.jpg")])
    assert caught.value.filename == str(tmp_path / "none")
    (tmp_path / "file").touch()
    files = [str(tmp_path / name) for name in ("none/a.jpg", "file/a.jpg", "file")]
    assert missing_files(files, folders_may_miss=True) == files[:2]
