"""`python -m benchmarks.start COMMIT`: CPU seconds to the first step, here and at another commit.

The same command line trains one step of NPO on the embedded benchmark, in a process of its own, from both
trees in turn. The time is that of the process from its start until its first record is on disk; all threads
count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.equal_commits import tree_of

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    "unlearn",
    "experiment=unlearn/mini/default",
    "trainer=NPO",
    "task_name=start",
    "trainer.args.max_steps=1",
    "trainer.args.report_to=none",
    "trainer.args.logging_steps=1",
    "eval=null",
    "model.model_args.pretrained_model_name_or_path=expunge/mini",
)
PROGRAM = """
import os, sys
from expunge.training.records import RecordLog
append = RecordLog.append
def first(self, record):
    append(self, record)
    used = os.times()
    print(used.user + used.system, flush=True)
    os._exit(0)
RecordLog.append = first
from expunge.cli.main import main
main(sys.argv[1:])
"""


def seconds(tree: Path, folder: Path) -> float:
    """CPU seconds of one run with the code of a tree."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment["EXPUNGE_CACHE"] = str(folder / "cache")
    words = [sys.executable, "-c", PROGRAM, *WORDS, "overwrite=true", f"paths.output_dir={folder / 'run'}"]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure both in turn, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("--times", type=int, default=5, help="runs of each (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there = tree_of(args.commit, folder / "there")
        found: dict[str, list[float]] = {"there": [], "here": []}
        for which in ("there", "here"):
            # The first run writes the embedded benchmark into the cache.
            seconds(there if which == "there" else ROOT, folder)
        for _ in range(args.times):
            found["there"].append(seconds(there, folder))
            found["here"].append(seconds(ROOT, folder))
        one, other = (statistics.median(found[which]) for which in ("there", "here"))
    print(
        f"CPU seconds to the first step: {args.commit} {one:.2f}, here {other:.2f}, ratio {other / one:.2f}"
    )


if __name__ == "__main__":
    main()
