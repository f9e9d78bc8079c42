"""tools/trust/shuffle_tests.py: orders that a seed repeats, and failures that are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import shuffle_tests


def test_an_order_has_every_file_once_and_is_that_of_its_seed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = [tmp_path / f"test_{i}.py" for i in range(9)] + [tmp_path / "deep" / "test_10.py"]
    for file in (*files, tmp_path / "helper.py"):
        file.touch()
    orders = [shuffle_tests.shuffled([tmp_path, files[0]], seed) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert sorted(Path(file).name for file in order) == sorted(file.name for file in files)


def test_files_run_in_the_order_and_failures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The first file that runs fails; what it leaves behind lets the others pass."""
    for i in range(4):
        text = "from pathlib import Path\n\ndef test(): "
        text += "p = Path(__file__).with_name('left'); there = p.exists(); p.touch(); assert there"
        (tmp_path / f"test_left_{i}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    monkeypatch.setattr(shuffle_tests, "ROOT", tmp_path)
    monkeypatch.setattr(shuffle_tests, "OUTPUT", tmp_path / "output")
    first = shuffle_tests.shuffled([tmp_path], 5)[0]
    options = ["--first-seed", "5", "--options=-p no:cacheprovider"]
    assert shuffle_tests.main([str(tmp_path), *options]) == 1
    assert "seed 5: 1 failed, 3 passed" in (printed := capsys.readouterr().out)
    assert f"\n  {first}\n" in printed and printed.count("test_left") == 1
    assert shuffle_tests.main([str(tmp_path), *options]) == 0
