"""The documented command lines under torchrun (gloo): training with evaluation, evaluation, and a fault."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mini_runs import QUIET, Outcome, model_is, names, read, records
from safetensors.torch import load_file

from expunge.training.checkpoint import newest_complete_checkpoint
from recorded import WALL_CLOCK

pytestmark = pytest.mark.slow
SRC = Path(__file__).resolve().parents[2] / "src"
RESULTS = ("TOFU_EVAL.json", "TOFU_SUMMARY.json")


def launch_words(ranks: int, script: str, out: Path, config_dir: Path, *overrides: str) -> list[str]:
    """The words that start a script in `count` processes; 0 = without a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(port)]
    argv = [sys.executable, *(launcher if ranks else []), str(SRC / script), "--config-dir", str(config_dir)]
    return [*argv, "task_name=run", f"paths.output_dir={out}", *overrides]


def launched(ranks: int, script: str, out: Path, config_dir: Path, *overrides: str) -> Outcome:
    """The result of a script in several processes; its stderr contains stdout too."""
    words = launch_words(ranks, script, out, config_dir, *overrides)
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, out)


def results(folder: Path) -> dict[str, Any]:
    """Both result files, without the counts and times of ranks."""
    found = {name: read(folder / name) for name in RESULTS}
    found["TOFU_EVAL.json"]["_about"].pop("cost")
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_an_evaluation_on_several_processes_is_that_of_one(
    ranks: int, start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    # One row per batch: the four rows of a view are split unequally.
    own = ("experiment=eval/mini/default", "eval=few", "eval.tofu.batch_size=1", model_is(start_model))
    one, several = (launched(size, "eval.py", tmp_path / str(size), config_dir, *own) for size in (0, ranks))
    assert (one.code, several.code) == (0, 0), several.stderr
    assert names(several.out) == names(one.out)
    assert results(several.out) == results(one.out)
    tokens = [read(run.out / "TOFU_EVAL.json")["_about"]["cost"]["tokens"] for run in (one, several)]
    assert 0 < tokens[1]["forward_tokens"] < tokens[0]["forward_tokens"]
    record = read(several.out / "run.json")
    assert (record["status"], record["metrics"]) == ("complete", read(several.out / RESULTS[1]))
    again = launched(ranks, "eval.py", tmp_path / str(ranks), config_dir, *own)
    assert again.stderr.count("nothing changed since the evaluation") == 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_training_on_several_processes_ends_with_its_evaluation(
    ranks: int, start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    own = ("--config-name=unlearn.yaml", "experiment=unlearn/mini/default", "trainer=GradAscent",
           "trainer.args.max_steps=1", "eval=few",
           "++trainer.args.use_cpu=true", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1",
           QUIET,
           model_is(start_model))  # fmt: skip
    done = launched(ranks, "train.py", tmp_path / "run", config_dir, *own)
    assert done.code == 0, done.stderr
    assert read(done.out / "run.json")["status"] == "complete"
    summary = read(done.out / "evals" / RESULTS[1])
    on_the_way = read(done.out / "evals" / "step-1" / RESULTS[1])
    assert on_the_way.pop("forget_quality") is None
    assert on_the_way == pytest.approx({name: summary[name] for name in on_the_way}, rel=1e-5)
    # One process evaluates the saved model to the same numbers.
    judged = ("experiment=eval/mini/default", "eval=few", model_is(done.out))
    one = launched(0, "eval.py", tmp_path / "one", config_dir, *judged)
    assert read(one.out / RESULTS[1]) == summary
    # Already trained: no training starts the process group, but the ranks still share the evaluation.
    (done.out / "evals" / RESULTS[0]).unlink()
    again = launched(ranks, "train.py", tmp_path / "run", config_dir, *own)
    assert again.code == 0, again.stderr
    assert again.stderr.count("is trained already") == 1
    assert read(done.out / "evals" / RESULTS[1]) == summary


def test_a_fault_is_reported_once(start_model: Path, config_dir: Path, tmp_path: Path) -> None:
    own = ("experiment=eval/mini/default", "eval=few", model_is(start_model))
    # Found by validation, before the process group starts.
    faulty = launched(
        2, "eval.py", tmp_path / "run", config_dir, *own, "eval.tofu.metrics.forget_quality.x=1"
    )
    assert faulty.code != 0
    assert faulty.stderr.count("forget_quality.x") == 1, faulty.stderr
    # A fault in rows, which every process reads; and one in the folder, which only the first process reads.
    (tmp_path / "rows.json").write_text('{"question": "Who?"}\n')
    rows = f"eval.tofu.views.forget_answer.hf_args={{path: {tmp_path / 'rows.json'}}}"
    faulty = launched(3, "eval.py", tmp_path / "run", config_dir, *own, rows)
    assert faulty.code != 0
    assert faulty.stderr.count("under 'answer'") == 1, faulty.stderr
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "own.txt").write_text("a file of somebody's")
    faulty = launched(2, "eval.py", tmp_path / "run", config_dir, *own)
    assert faulty.code != 0
    assert faulty.stderr.count("holds no run of this tool") == 1, faulty.stderr
    assert names(tmp_path / "run") == {"own.txt"}


WALK = ("--config-name=unlearn.yaml", "experiment=unlearn/mini/default", "trainer=NPO", "retain=kl",
        "eval=few", QUIET,
        "++trainer.args.use_cpu=true", "trainer.args.max_steps=5", "trainer.args.logging_steps=1",
        "trainer.args.save_strategy=steps", "trainer.args.save_steps=2", "trainer.args.eval_strategy=steps",
        "trainer.args.eval_steps=3",
        # Without it, DDP arranges its buckets again after the first step of a process. In a resumed run, sums
        # over three or more processes then have another order, and differ in the last bit.
        "trainer.args.ddp_find_unused_parameters=true")  # fmt: skip


def walk(ranks: int, rows: int, out: Path, config_dir: Path, start: Path) -> list[str]:
    """The words of a run in several processes; each takes `rows` rows of a step."""
    return launch_words(
        ranks,
        "train.py",
        out,
        config_dir,
        *WALK,
        f"trainer.args.per_device_train_batch_size={rows}",
        model_is(start),
    )


def curve(folder: Path) -> dict[str, list[float]]:
    """The values of each record, by name, that do not depend on the clock or on the split of a step."""
    found: dict[str, list[float]] = {}
    for record in records(folder):
        for name, value in record.items():
            if name not in (*WALL_CLOCK, "epoch", "total_flos") and value is not None:
                found.setdefault(name, []).append(value)
    return found


HOLDING = """
import time
from pathlib import Path

from expunge.training.listeners import Listener


class Hold(Listener):
    def before_update(self, moment):
        while moment.step == 3 and Path(__file__).with_name("held").exists():
            time.sleep(0.02)
"""
"""A listener that holds a run in its fourth step, so that it is killed there on a slow machine too."""


def kill_all(pid: int) -> None:
    """Kill a launcher and its processes: they have sessions of their own, and would go on without it."""
    launcher = psutil.Process(pid)
    launcher.suspend()
    family = [launcher, *launcher.children(recursive=True)]
    for process in family:
        process.kill()
    # The caller waits for the launcher, which is its child.
    assert psutil.wait_procs(family[1:], timeout=30)[1] == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_whole_run_on_several_processes_is_that_of_one(
    ranks: int, start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    """40 rows, 12 per step; the last step has 4. Trained, evaluated twice, saved, killed and resumed."""
    one, several, killed = (tmp_path / name for name in ("one", "several", "killed"))
    subprocess.run(walk(0, 12, one, config_dir, start_model), check=True, timeout=300)
    subprocess.run(walk(ranks, 12 // ranks, several, config_dir, start_model), check=True, timeout=300)
    for name, values in curve(one).items():
        assert curve(several)[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
    for folder in ("", "checkpoint-4"):
        expected = load_file(one / folder / "model.safetensors")
        for name, tensor in load_file(several / folder / "model.safetensors").items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=f"{folder} {name}")
    for name in (f"evals/{RESULTS[1]}", f"evals/step-3/{RESULTS[1]}"):
        found, expected = read(several / name), read(one / name)
        assert found.pop("forget_quality") is expected.pop("forget_quality") is None
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), name

    (config_dir / "holding.py").write_text(HOLDING)
    held = config_dir / "held"
    held.touch()
    words = [
        *walk(ranks, 12 // ranks, killed, config_dir, start_model),
        "trainer.listeners=['holding:Hold']",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and not (killed / "checkpoint-2").is_dir():
            time.sleep(0.02)
        if ranks == 2:
            # One process is lost: the launcher ends the others, long before ddp_timeout, with exit code 1.
            (lost,) = (
                worker
                for worker in psutil.Process(run.pid).children(recursive=True)
                if worker.environ().get("RANK") == "1"
            )
            lost.kill()
            assert run.wait(60) == 1
        else:
            kill_all(run.pid)
    held.unlink()
    assert newest_complete_checkpoint(killed) is not None
    assert not (killed / "trained.json").exists()
    subprocess.run(words, check=True, timeout=300)
    assert (killed / "model.safetensors").read_bytes() == (several / "model.safetensors").read_bytes()
    assert curve(killed) == curve(several)
