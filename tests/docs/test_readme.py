"""The commands in the README and the documentation work as printed."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = ("train", "unlearn", "eval", "score")


def commands(page: Path) -> list[str]:
    """The commands in a page's bash blocks and code spans, with continuation lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [
        line.split("   #")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
    ]
    spans = re.findall(r"`(expunge [^`]*)`", text)
    return [line for line in [*blocks, *spans] if line.startswith(("expunge ", "python src/"))]


RUNS = [
    (page.name, line)
    for page in PAGES
    for line in commands(page)
    if "…" not in line and (line.startswith("python") or line.split()[1] in VERBS)
]


@pytest.mark.parametrize(
    ("page", "line"), RUNS, ids=[f"{page}:{number}" for number, (page, _) in enumerate(RUNS)]
)
def test_every_documented_run_is_valid(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composes and validates the run; files that a reader would create first are created here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    words = shlex.split(line)
    verb = words[1] if words[0] == "expunge" else None
    overrides = words[2:]
    kept = []
    for word in overrides:
        if word.startswith("--config-name="):
            verb = {"unlearn.yaml": "unlearn", "train.yaml": "train", "eval.yaml": "eval"}[
                word.partition("=")[2]
            ]
        elif word.startswith(("retain_logs_path=", "difficulty.path=")) or ".alternate_path=" in word:
            path = tmp_path / word.partition("=")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
            kept.append(word)
        elif "pretrained_model_name_or_path=" in word and ("shared" in word or word.endswith("=DIR")):
            continue
        else:
            kept.append(word)
    assert main(["validate", str(verb), *kept]) == 0


def test_the_pages_have_runs_to_check() -> None:
    assert len(RUNS) >= 4


@pytest.mark.parametrize(
    "line", [line for line in commands(ROOT / "README.md") if line.split()[1] in ("ls", "show")]
)
def test_listings(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


@pytest.mark.slow
def test_demo_makes_sense(tmp_path: Path) -> None:
    """The table of `make demo` has the expected results, and a second run uses the trained models again."""
    command = [sys.executable, "-m", "expunge.cli.main", "demo", "--output-dir", str(tmp_path / "demo")]
    environment = {**os.environ, "EXPUNGE_CACHE": str(tmp_path / "cache")}
    first = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert first.returncode == 0, first.stderr[-3000:]
    assert "collapsed" in first.stdout
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "demo" / "table.csv").open())}
    number = {
        name: {key: float(value) for key, value in row.items() if re.fullmatch(r"[-\d.e]+", value)}
        for name, row in rows.items()
    }
    assert number["full"]["forget_Q_A_Prob"] > 0.8
    assert number["retain90"]["forget_Q_A_Prob"] < 0.3
    assert number["full"]["forget_quality"] < 1e-6
    for method in ("NPO", "SimNPO"):
        assert number[method]["forget_quality"] > 1e3 * number["full"]["forget_quality"]
        assert number[method]["model_utility"] > 0.9 * number["full"]["model_utility"]
    assert number["GradAscent"]["model_utility"] < 0.2 * number["full"]["model_utility"]
    assert rows["GradAscent"]["collapsed"] == "True"
    assert {path.suffix for path in (tmp_path / "demo").glob("table.*")} == {".json", ".csv", ".md"}

    second = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert "is trained already" in second.stderr
    assert "train_runtime" not in second.stderr
    assert second.stdout == first.stdout
