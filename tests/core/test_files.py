import errno
import json
from pathlib import Path

import pytest

from expunge.core.errors import UserError
from expunge.core.files import atomic_write, is_complete, mark_complete, read_json, write_json, write_text


def test_json_has_null_never_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5], 3: "int keys become text"})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": None,
        "y": [None, 1.5],
        "3": "int keys become text",
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fill(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("stopped in the middle")

    with pytest.raises(RuntimeError):
        atomic_write(tmp_path / "a.txt", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_reported_to_the_user(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="no space left on the disk") as caught:
        atomic_write(tmp_path / "a.txt", fill)
    assert "paths.output_dir" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_json_is_reported_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_completeness_mark(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    mark_complete(tmp_path)
    assert is_complete(tmp_path)
