"""What a SLURM cluster would be asked, by commands of its names that note what they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.core.errors import UserError
from expunge.sweeps.executor import executor_of
from expunge.sweeps.job import Job

pytest.importorskip("submitit", reason="submitit is not installed")

NOTES = """#!/bin/sh
echo "$0 $*" >> {calls}
[ "$(basename $0)" = sbatch ] && cat "$1" >> {calls} && echo "Submitted batch job 12"
exit 0
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of what was asked."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "scancel", "sacct"):
        command = tmp_path / "bin" / name
        command.write_text(NOTES.format(calls=tmp_path / "calls"))
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "calls"


def test_the_array_that_is_submitted(calls: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    settings = {
        "timeout_min": 240, "workers": 4, "gpus": 1, "slurm_partition": "gpu", "slurm_signal_delay_s": 120,
        "folder": str(tmp_path / "submitit"),
    }  # fmt: skip
    executor = executor_of("submitit", settings)
    handles = executor.submit([job(f"job{number}", "1").task() for number in range(6)])
    asked = calls.read_text()
    for line in (
        "#SBATCH --array=0-5%4", "#SBATCH --time=240", "#SBATCH --gpus-per-node=1", "#SBATCH --partition=gpu",
        "#SBATCH --signal=USR2@120", "#SBATCH --open-mode=append",
    ):  # fmt: skip
        assert line in asked
    executor.cancel(handles[2])
    assert f"scancel {handles[2].job_id}" in calls.read_text()
    assert handles[2].job_id == "12_2"


def test_what_sbatch_refuses_is_reported(calls: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n"
    )
    executor = executor_of("submitit", {"timeout_min": 5, "folder": str(tmp_path / "submitit")})
    with pytest.raises(UserError, match="SLURM refuses the jobs: sbatch: error: invalid partition"):
        executor.submit([job("x", "1").task()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs timeout_min"),
        ({"timeout_min": 5, "cluster": "slurn"}, "slurn"),
        ({"timeout_min": 5, "slurm_partitoin": "gpu"}, "slurm_partitoin"),
        ({"timeout_min": "long"}, "timeout_min"),
    ],
)
def test_faulty_settings(settings: dict[str, object], message: str, calls: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        executor_of("submitit", {"folder": str(tmp_path / "submitit"), **settings})


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="srun"):
        executor_of("submitit", {"timeout_min": 5, "folder": str(tmp_path / "submitit")})
