"""The wheel contains the configs and works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_installed_package_runs_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*install, "--target", str(site), str(ROOT)], check=True, cwd=tmp_path)
    assert (site / "expunge" / "configs" / "unlearn.yaml").is_file()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import expunge.config.location as l; print(l.configs_dir())"]
    found = subprocess.run(
        where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == str(site / "expunge" / "configs")
    command = [
        sys.executable,
        "-m",
        "expunge.cli.main",
        "validate",
        "unlearn",
        "experiment=unlearn/mini/default",
        "trainer=NPO",
        "task_name=x",
    ]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "handler: expunge.methods.npo:npo" in ran.stdout
