from pathlib import Path

import pytest

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import read_json
from expunge.core.run_dir import RunDir


def config(**changes: object) -> Config:
    args = {"learning_rate": 1e-5, "logging_steps": 5, **changes}
    return Config({"mode": "unlearn", "task_name": "t", "trainer": {"handler": "m:f", "args": args}, "eval": {"tofu": {}}})


def test_the_same_run_is_continued_and_another_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "t", config())
    assert not run.resumed
    run.finish("complete", steps=3)
    run.mark_trained()
    again = RunDir(tmp_path / "t", config(logging_steps=1))  # how often it logs is not what it computes
    assert again.resumed
    assert again.trained
    with pytest.raises(UserError, match=r"trainer.args.learning_rate: 1e-05 there, 0.1 now"):
        RunDir(tmp_path / "t", config(learning_rate=0.1))
    replaced = RunDir(tmp_path / "t", config(learning_rate=0.1), overwrite=True)
    assert not replaced.resumed
    assert not replaced.trained


def test_a_folder_of_somebody_elses_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no run of this tool"):
            RunDir(tmp_path, config(), overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_record(tmp_path: Path) -> None:
    RunDir(tmp_path / "t", config()).finish("complete", steps=7, metrics={"forget_quality": None})
    record = read_json(tmp_path / "t" / "run.json")
    assert (record["status"], record["steps"], record["metrics"]) == ("complete", 7, {"forget_quality": None})
    assert record["versions"]["python"]
    assert record["identity"] == config().identity()
