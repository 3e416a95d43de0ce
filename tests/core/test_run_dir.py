from pathlib import Path

import pytest

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import read_json
from expunge.core.run_dir import RunDir


def config(**changes: object) -> Config:
    args = {"learning_rate": 1e-5, "logging_steps": 5, **changes}
    return Config(
        {
            "mode": "unlearn",
            "task_name": "t",
            "trainer": {"handler": "m:f", "args": args},
            "eval": {"tofu": {}},
        }
    )


def test_the_same_run_is_continued_and_another_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "t", config())
    assert not run.resumed
    run.begin()
    run.finish("complete", steps=3)
    run.mark_trained()
    again = RunDir(tmp_path / "t", config(logging_steps=1))  # logging does not change what the run computes
    assert again.resumed
    assert again.trained
    assert again.record.steps == 3
    with pytest.raises(UserError, match=r"trainer.args.learning_rate: 1e-05 there, 0.1 now"):
        RunDir(tmp_path / "t", config(learning_rate=0.1))
    replaced = RunDir(tmp_path / "t", config(learning_rate=0.1), overwrite=True)
    assert not replaced.resumed
    assert not replaced.trained
    # The new run may still turn out to be faulty, so the old files stay until it begins.
    assert (tmp_path / "t" / "trained.json").is_file()
    replaced.begin()
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["run.json", "run_config.json"]
    replaced.mark_trained()
    assert replaced.trained


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    RunDir(tmp_path / "a", config()).finish("failed")
    assert not (tmp_path / "a").exists()
    for name, keep, left in (("b", False, []), ("c", True, ["run.json", "run_config.json"])):
        run = RunDir(tmp_path / name, config())
        run.begin()
        run.abandon(keep)
        assert (tmp_path / name).exists() == keep
        assert sorted(path.name for path in (tmp_path / name).glob("*")) == left
    assert read_json(tmp_path / "c" / "run.json")["status"] == "failed"
    resumed = RunDir(tmp_path / "c", config())
    resumed.begin()
    resumed.abandon(keep=False)
    assert (tmp_path / "c" / "run_config.json").is_file()
    (tmp_path / "d").mkdir()
    given = RunDir(tmp_path / "d", config())
    given.begin()
    given.abandon(keep=False)
    assert list((tmp_path / "d").iterdir()) == []


def test_a_folder_with_foreign_files_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no run of this tool"):
            RunDir(tmp_path, config(), overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_record(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "t", config())
    run.begin()
    run.finish("complete", steps=7, metrics={"forget_quality": None})
    record = read_json(tmp_path / "t" / "run.json")
    assert (record["status"], record["steps"], record["metrics"]) == ("complete", 7, {"forget_quality": None})
    assert record["versions"]["python"]
    assert record["identity"] == config().identity()
