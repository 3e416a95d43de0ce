"""`expunge jobs`: a file of command lines on the embedded benchmark, and what is wrong with one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from expunge.cli.main import main

QUIET = "trainer.args.report_to=none eval=null"
TRAIN = f"expunge train experiment=finetune/mini/default trainer.args.max_steps=2 {QUIET}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(folder: Path, *lines: str) -> str:
    (folder / "jobs.txt").write_text("# jobs\n\n" + "\n".join(lines) + "\n")
    return str(folder / "jobs.txt")


def test_finished_jobs_are_skipped_and_another_evaluation_is_work_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = f"{TRAIN} task_name=good trainer.args.max_steps=1"
    assert main(good.split()[1:]) == 0
    capsys.readouterr()
    assert main(["jobs", write(folder, good)]) == 0
    assert "skipped  saves/finetune/good" in capsys.readouterr().out
    assert not (folder / "saves" / "finetune" / "good.job.log").exists()
    assert main(["jobs", write(folder, good.replace("eval=null", "eval=tofu")), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("continue  saves/finetune/good")


@pytest.mark.slow
def test_jobs_run_are_listed_and_are_skipped_afterwards(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (
        f"{TRAIN} task_name=good",
        f"{TRAIN} task_name=bad data.train.MINI_full.args.hf_args.name=none",
    )
    file = write(folder, good, bad)
    runs = folder / "saves" / "finetune"
    assert main(["jobs", file, "--dry-run"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["run", "saves/finetune/good"],
        ["run", "saves/finetune/bad"],
    ]
    assert not runs.exists()

    assert main(["jobs", file, "--executor", "joblib", "--workers", "2"]) == 2
    shown = capsys.readouterr()
    assert json.loads((runs / "good" / "run.json").read_text())["status"] == "complete"
    assert "2 running" in shown.out
    assert "error: saves/finetune/bad: failed with exit code 2" in shown.err
    assert "none" in shown.err.split("failed with exit code 2")[1]
    assert "step 2/2" in (runs / "good.job.log").read_text()

    written = (runs / "good.job.log").read_bytes()
    assert main(["jobs", write(folder, good)]) == 0
    assert "skipped  saves/finetune/good" in capsys.readouterr().out
    assert (runs / "good.job.log").read_bytes() == written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("expunge trian task_name=x", "unknown verb of a job 'trian'"),
        (
            "python src/train.py task_name=x",
            "'python src/train.py task_name=x' is not a command of `expunge`",
        ),
        ("expunge", "'expunge' is not a command of `expunge`"),
        ("expunge train 'task_name=x", "is not a command line: No closing quotation"),
        (f"{TRAIN} task_name=x overwrite=true", "overwrite=true in a job"),
        (f"{TRAIN} task_name=x trainer.args.learning_rat=1", "learning_rat"),
        (f"{TRAIN} task_name=x --nonsense", "unrecognized arguments: --nonsense"),
        (f"{TRAIN} task_name=first", "two jobs write into saves/finetune/first"),
    ],
)
def test_a_faulty_line_starts_nothing(
    line: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", write(folder, f"{TRAIN} task_name=first", line)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "line 4" in error or "two jobs" in error
    assert not (folder / "saves").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.txt"], "cannot read the jobs of none.txt: No such file or directory"),
        (["jobs.txt", "--env", "OMP"], "--env OMP: not KEY=VALUE"),
        (["jobs.txt", "--set", "=3"], "--set =3: not KEY=VALUE"),
        (["empty.txt"], "empty.txt contains no command line"),
        (["jobs.txt", "--executor", "joblib"], "the executor joblib needs workers"),
        (["jobs.txt", "--executor", "joblib", "--workers", "2", "--gpus", "-1"], "joblib.gpus=-1: must be"),
        (["jobs.txt", "--executor", "joblib", "--set", "workers=two"], "joblib.workers=two: must be"),
        (["jobs.txt", "--executor", "jolib", "--dry-run"], "did you mean 'joblib'?"),
        (["jobs.txt", "--gpus", "2"], "local.gpus=2: LocalExecutor takes no 'gpus'"),
    ],
)
def test_a_faulty_command(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, f"{TRAIN} task_name=x")
    (folder / "empty.txt").write_text("# nothing\n")
    assert main(["jobs", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "saves" / "finetune" / "x").mkdir(parents=True)
    (folder / "saves" / "finetune" / "x" / "notes.txt").write_text("mine")
    assert main(["jobs", write(folder, f"{TRAIN} task_name=y", f"{TRAIN} task_name=x")]) == 2
    assert "holds no run of this tool" in capsys.readouterr().err
    assert not (folder / "saves" / "finetune" / "y").exists()


def test_the_documented_commands_are_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "jobs.md").read_text()
    (folder / "jobs.txt").write_text(re.findall(r"```text\n(.*?)```", page, re.S)[0])
    blocks = "".join(re.findall(r"```bash\n(.*?)```", page, re.S)).splitlines()
    commands = [line for line in blocks if line.startswith("expunge jobs ")]
    assert len(commands) == 5
    for command in commands:
        assert main([*shlex.split(command)[1:], "--dry-run"]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.count("\nrun ") == 3


LONG = (
    "expunge train experiment=finetune/mini/default eval=null trainer.args.report_to=none"
    " trainer.args.logging_steps=1 trainer.args.max_steps=30 trainer.args.save_strategy=no"
)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_sigusr2_from_the_scheduler_writes_a_checkpoint_requeues_and_resumes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = folder / "saves" / "finetune"
    assert main([*f"{LONG} task_name=whole".split()[1:]]) == 0
    log = runs / "stopped.job.log"

    def preempt() -> None:
        deadline = time.monotonic() + 120
        while not (log.is_file() and "step 3/30" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if "submitit.core._submit" in process.cmdline():
                os.kill(process.pid, signal.SIGUSR2)

    threading.Thread(target=preempt, daemon=True).start()
    file = write(folder, f"{LONG} task_name=stopped")
    words = ["--executor", "submitit", "--set", "cluster=local", "--set", "timeout_min=10"]
    assert main(["jobs", file, *words]) == 0
    text = log.read_text()
    assert text.count("\n--- ") == 1, "the task ran twice"
    assert "stopped by SIGUSR2" in text
    assert "resuming from" in text
    assert (runs / "stopped" / "model.safetensors").read_bytes() == (
        runs / "whole" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_checkpoints_that_the_same_jobs_continue_from(folder: Path) -> None:
    saving = LONG.replace("save_strategy=no", "save_strategy=steps") + " trainer.args.save_steps=2"
    file = write(folder, f"{saving} task_name=x")
    run = folder / "saves" / "finetune" / "x"

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not (run / "checkpoint-2" / ".complete").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(["jobs", file]) == 130
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert main(["jobs", file]) == 0
    assert "resuming from" in run.with_name("x.job.log").read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
