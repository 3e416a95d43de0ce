"""The one protocol, on every executor that is installed: what ends well, what fails, what is cancelled."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.sweeps import run as running
from expunge.sweeps.child import Child
from expunge.sweeps.executor import Executor, executor_of
from expunge.sweeps.job import Job, last_lines
from expunge.sweeps.run import JobsCancelled, Progress, run_jobs

Make = Callable[..., Job]

# Waits for ctrl-C, and says that it came.
PATIENT = """
import sys, time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("ended in order", flush=True)
    sys.exit(130)
"""


def needs(package: str) -> list[pytest.MarkDecorator]:
    is_there = importlib.util.find_spec(package) is not None
    return [pytest.mark.slow, pytest.mark.skipif(not is_there, reason=f"{package} is not installed")]


SETTINGS: dict[str, dict[str, Any]] = {
    "local": {},
    "joblib": {"workers": 2},
    "submitit": {"cluster": "local", "timeout_min": 5},
    "ray": {"gpus": 0, "cpus": 1},
}
ALL = [pytest.param(name, marks=needs(name) if name in ("submitit", "ray") else ()) for name in SETTINGS]


@pytest.fixture(params=ALL)
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Executor:
    settings = dict(SETTINGS[request.param])
    if request.param == "submitit":
        settings["folder"] = str(tmp_path / "submitit")
    return executor_of(request.param, settings)


def test_each_job_ends_as_its_command_did(executor: Executor, job: Make, tmp_path: Path) -> None:
    write = (
        "import os, sys; os.makedirs(sys.argv[1]); open(sys.argv[1] + '/x', 'w').write(os.environ['WHAT'])"
    )
    jobs = [
        job("good", write, WHAT="seen"),
        job("bad", "import sys; print('first'); sys.exit('no such flag')"),
        job("stopped", "import sys; sys.exit(75)"),
        Job(("no-such-command",), tmp_path / "runs" / "missing"),
    ]
    seen: list[Progress] = []
    good, bad, stopped, missing = run_jobs(jobs, executor, on_progress=seen.append)
    assert (good.state, good.exit_code) == ("done", 0)
    assert (jobs[0].folder / "x").read_text() == "seen"
    assert (bad.state, bad.exit_code, bad.lines) == ("failed", 1, ("first", "no such flag"))
    assert (stopped.state, stopped.exit_code) == ("interrupted", 75)
    assert missing.state == "failed"
    assert "cannot run no-such-command" in missing.lines[0]
    assert seen[-1].running == 0
    assert (seen[-1].jobs, seen[-1].done, seen[-1].failed) == (4, 1, 3)
    assert seen[-1].eta_seconds == 0.0


def test_ctrl_c_ends_the_children_in_order(executor: Executor, job: Make) -> None:
    """SIGTERM takes the same way: the process that looks after the jobs ends them before it ends."""
    jobs = [job(f"job{number}", PATIENT) for number in range(3)]
    begun = threading.Thread(target=interrupt_when, args=(jobs,), daemon=True)
    begun.start()
    with pytest.raises(JobsCancelled) as stopped:
        run_jobs(jobs, executor)
    states = {outcome.state for outcome in stopped.value.outcomes}
    assert "interrupted" in states
    assert states <= {"interrupted", "not started"}
    wrote = [last_lines(job.log) for job in jobs]
    assert ["begun", "ended in order"] in wrote
    assert ["begun"] not in wrote
    assert subprocess.run(["pgrep", "-f", str(jobs[0].folder)], capture_output=True).returncode == 1


def interrupt_when(jobs: list[Job]) -> None:
    """SIGTERM to this process once a job has begun to wait."""
    deadline = time.monotonic() + 60
    while not any("begun" in last_lines(job.log) for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def test_local_runs_one_after_the_other_and_joblib_side_by_side(job: Make) -> None:
    code = "import time; print(time.time(), flush=True); time.sleep(0.5); print(time.time())"
    overlap = {}
    for name in ("local", "joblib"):
        jobs = [job(f"{name}{number}", code) for number in range(2)]
        run_jobs(jobs, executor_of(name, SETTINGS[name]))
        first, second = ([float(line) for line in last_lines(job.log)] for job in jobs)
        overlap[name] = first[0] < second[1] and second[0] < first[1]
    assert overlap == {"local": False, "joblib": True}


def test_joblib_runs_at_most_so_many(job: Make) -> None:
    jobs = [job(f"job{number}", "import time; time.sleep(0.3)") for number in range(5)]
    seen: list[Progress] = []
    run_jobs(jobs, executor_of("joblib", {"workers": 2}), on_progress=seen.append, poll_seconds=0.02)
    assert max(progress.running for progress in seen) == 2


def test_each_worker_of_joblib_has_gpus_of_its_own(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(1)"
    jobs = [job(f"job{number}", code) for number in range(2)]
    run_jobs(jobs, executor_of("joblib", {"workers": 2, "gpus": 2}))
    assert sorted(last_lines(job.log)[0] for job in jobs) == ["4,5", "6,7"]
    with pytest.raises(UserError, match="3 workers with 2 GPUs each need 6 GPUs, and this machine shows 4"):
        executor_of("joblib", {"workers": 3, "gpus": 2})


def test_a_job_that_still_runs_is_not_started_twice(job: Make) -> None:
    """As after a kill of the process that looked after it."""
    busy = job("busy", "import time; print('working', flush=True); time.sleep(60)")
    child = Child(busy.task())
    try:
        (outcome,) = run_jobs([busy], executor_of("local"))
    finally:
        child.kill()
        child.wait()
    assert outcome.state == "failed"
    assert "still runs" in outcome.lines[0]
    assert "still runs" not in busy.log.read_text(), "the log belongs to the process that still runs"
    (outcome,) = run_jobs([Job((sys.executable, "-c", "print(1)"), busy.folder)], executor_of("local"))
    assert outcome.state == "done"


def test_a_child_that_ignores_ctrl_c_is_killed(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = job(
        "stubborn",
        "import signal, time; signal.signal(2, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)",
    )
    monkeypatch.setattr(running, "CANCEL_SECONDS", 0.5)
    monkeypatch.setattr("expunge.sweeps.local.GRACE_SECONDS", 0.5)
    threading.Thread(target=interrupt_when, args=([stubborn],), daemon=True).start()
    with pytest.raises(JobsCancelled) as stopped:
        run_jobs([stubborn], executor_of("local"))
    assert stopped.value.outcomes[0].state == "interrupted"
    time.sleep(0.2)
    assert subprocess.run(["pgrep", "-f", str(stubborn.folder)], capture_output=True).returncode == 1


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_a_child_hears_ctrl_c_where_this_process_does_not(how: str, job: Make) -> None:
    """A shell's background job ignores it, a Ray worker blocks it, and a process inherits either."""
    patient, missing = job("patient", PATIENT), Job(("no-such-command",), job("missing", "").folder)
    before = signal.getsignal(signal.SIGINT)
    if how == "ignored":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        child = Child(patient.task())
        while "begun" not in last_lines(patient.log):
            time.sleep(0.05)
        child.interrupt()
        assert child.wait() == 130
        (outcome,) = run_jobs([missing], executor_of("local"))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, before)
    assert outcome.state == "failed"
    assert "cannot run no-such-command" in outcome.lines[0]


def test_a_launchers_variables_do_not_reach_a_job(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    one = job(
        "one",
        "import os; print(*(os.environ.get(name) for name in ('WORLD_SIZE', 'RANK', 'HF_HOME', 'OWN')))",
        OWN="x",
    )
    run_jobs([one], executor_of("local"))
    assert last_lines(one.log) == ["None None /somewhere x"]
    assert one.task().environment["HF_HOME"] == "/somewhere"


def test_an_executor_of_ones_own_is_named_by_its_class(job: Make) -> None:
    (outcome,) = run_jobs([job("own", "1")], executor_of("expunge.sweeps.local:LocalExecutor"))
    assert outcome.state == "done"
    with pytest.raises(UserError, match="no_such_package"):
        executor_of("no_such_package.module:Own")


def test_two_jobs_never_share_a_folder(job: Make) -> None:
    with pytest.raises(UserError, match="two jobs write into"):
        run_jobs([job("same", "1"), job("same", "2")], executor_of("local"))


def test_a_log_keeps_all_attempts_and_shows_the_last(job: Make) -> None:
    for word in ("first", "second"):
        run_jobs([job("again", f"print({word!r})")], executor_of("local"))
    log = job("again", "").log
    assert last_lines(log) == ["second"]
    assert log.read_text().count("\n--- ") == 1
    assert "first" in log.read_text()
    assert log.name == "again.job.log"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("slrum", {}, "unknown executor 'slrum'"),
        ("local", {"workers": 2}, "local.workers=2: LocalExecutor takes no 'workers'"),
        ("joblib", {}, "the executor joblib needs workers"),
        ("joblib", {"workers": 0}, "joblib.workers=0: must be a whole number of at least 1"),
        ("joblib", {"workers": 1, "gpus": -1}, "joblib.gpus=-1: must be a whole number of at least 0"),
        ("submitit", {"timeout_min": "long"}, "submitit.timeout_min=long: must be a whole number"),
        ("ray", {"cpus": "all"}, "ray.cpus=all: must be a number"),
    ],
)
def test_a_faulty_choice_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        executor_of(name, settings)


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("joblib", "joblib", "sweep"), ("submitit", "submitit", "slurm"), ("ray", "ray", "ray"),
])  # fmt: skip
def test_a_missing_package_names_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as refused:
        executor_of(name, {"workers": 1} if name == "joblib" else {})
    assert f'pip install "expunge[{extra}]"' in str(refused.value)


def test_progress_in_words() -> None:
    assert str(Progress(10, 2, 3, 1, 2, 1200.0)) == (
        "5 of 10 done, 1 failed, 2 running, 12 an hour, about 20 min left"
    )
    assert Progress(10, 2, 0, 0, 2, 5.0).eta_seconds is None
