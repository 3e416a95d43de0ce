"""`python -m benchmarks.equal_commits COMMIT`: does this tree train the same weights as another commit?

Both trees run the same command lines on the embedded benchmark, from the same start, on one thread. For each
run the final weights are compared (equal bit for bit, or the largest difference). All values that both
training logs have are compared as well, except times and memory. Runs marked "killed" are stopped by SIGKILL
at their first checkpoint and then resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mini_settings import NOT_RUN, READ_ALTERNATES, SETTINGS, Setting

ROOT = Path(__file__).resolve().parents[1]
BATCH = "trainer.args.per_device_train_batch_size"
CUTS = "trainer.args.gradient_accumulation_steps"
LORA = ("model/adapter=lora", "model.adapter.r=4", "trainer.args.learning_rate=5e-3")
KILLED = "trainer.args.save_strategy=steps", "trainer.args.save_steps=3"
NOT_COMPARED = (
    "seconds",
    "tokens_per_second",
    "peak_memory_mb",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "eval_runtime",
)


@dataclass(frozen=True)
class Run:
    """One command line.

    Attributes:
        name: of the run.
        overrides: of `expunge unlearn`.
        experiment: under `unlearn/mini/`; empty = finetuning.
        killed: whether it is killed at its first checkpoint and resumed.
    """

    name: str
    overrides: tuple[str, ...] = ()
    experiment: str = "default"
    killed: bool = False


def _methods() -> list[Run]:
    """Every method that needs no file of alternates and every procedure, with the benchmark's settings."""
    names = sorted(path.stem for path in (ROOT / "configs" / "trainer").glob("*.yaml"))
    settings = {
        name: SETTINGS.get(name, Setting()) for name in names if name not in (*READ_ALTERNATES, *NOT_RUN)
    }
    runs = [
        Run(f"method-{name}", (f"trainer={name}", *found.overrides), found.experiment)
        for name, found in settings.items()
    ]
    return [
        *runs,
        *(Run(f"procedure-{name}", (f"procedure={name}",)) for name in ("task_vector", "retrain", "whp")),
    ]


RUNS = [
    Run("finetune", ("trainer.args.max_steps=12",), ""),
    *_methods(),
    Run("retain-kl", ("trainer=GradDiff", "retain=kl")),
    Run("retain-embed_diff", (*("trainer=RMU", "retain=embed_diff"), *SETTINGS["RMU"].overrides)),
    Run("cut-4x2", ("trainer=NPO", f"{BATCH}=4", f"{CUTS}=2")),
    Run("cut-3x3-short-last", ("trainer=GradDiff", f"{BATCH}=3", f"{CUTS}=3", "trainer.args.max_steps=8")),
    Run("cut-1x4", ("trainer=SimNPO", f"{BATCH}=1", f"{CUTS}=4")),
    Run("checkpointing", ("trainer=NPO", "trainer.args.gradient_checkpointing=true")),
    Run("reference-frozen", ("trainer=NPO", "reference=frozen")),
    Run("lora-npo", ("trainer=NPO", *LORA)),
    Run("lora-kl", ("trainer=GradDiff", "retain=kl", *LORA)),
    Run("lora-cut-4x2", ("trainer=NPO", *LORA, f"{BATCH}=4", f"{CUTS}=2")),
    Run("mask-magnitude", ("trainer=NPO", "mask=magnitude")),
    Run("mask-wagle", ("trainer=GradDiff", "mask=wagle")),
    Run("sam", ("trainer=NPO", "optimizer=sam")),
    Run("sam-cut-4x2", ("trainer=GradDiff", "optimizer=sam", f"{BATCH}=4", f"{CUTS}=2")),
    Run("random-smoothing", ("trainer=NPO", "optimizer=random_smoothing")),
    Run("sophia", ("trainer=GradDiff", "optimizer=sophia")),
    Run("sophia-h", ("trainer=GradDiff", "optimizer=sophia_h")),
    Run("sgd", ("trainer=GradDiff", "optimizer=sgd")),
    # If the gradient is almost zero, AdamW turns rounding errors into full steps; plain SGD does not.
    *(
        Run(f"sgd-{name}", (f"trainer={name}", *SETTINGS[name].overrides, "optimizer=sgd"))
        for name in ("KL", "RR", "l1_sparse")
    ),
    Run("adafactor", ("trainer=GradDiff", "trainer.args.optim=adafactor")),
    Run("cosine", ("trainer=NPO", "trainer.args.lr_scheduler_type=cosine", "trainer.args.weight_decay=0.1")),
    Run("no-clip", ("trainer=NPO", "trainer.args.max_grad_norm=0")),
    Run("constant", ("trainer=NPO", "trainer.args.lr_scheduler_type=constant_with_warmup")),
    Run("sam-lora", ("trainer=NPO", "optimizer=sam", *LORA, "model.adapter.dropout=0")),
    Run("compat-open_unlearning", ("trainer=NPO", "compat=open_unlearning", f"{BATCH}=4", f"{CUTS}=2")),
    Run("bf16", ("trainer=NPO", "model.model_args.torch_dtype=bfloat16")),
    Run("neftune", ("trainer=GradDiff", "trainer.args.neftune_noise_alpha=5")),
    Run("resume-npo", ("trainer=NPO", *KILLED), killed=True),
    Run(
        "resume-cut",
        ("trainer=PDU", *SETTINGS["PDU"].overrides, *KILLED, f"{BATCH}=4", f"{CUTS}=2"),
        killed=True,
    ),
    Run("resume-lora", ("trainer=NPO", *LORA, *KILLED), killed=True),
    Run("resume-sam-mask", ("trainer=NPO", "optimizer=sam", "mask=magnitude", *KILLED), killed=True),
    Run("resume-sophia", ("trainer=GradDiff", "optimizer=sophia", *KILLED), killed=True),
    Run(
        "evaluated",
        (
            "trainer=NPO",
            "trainer.args.do_eval=true",
            "trainer.args.eval_strategy=steps",
            "trainer.args.eval_steps=3",
            "trainer.args.save_strategy=steps",
            "trainer.args.save_steps=3",
            "trainer.args.load_best_model_at_end=true",
            "trainer.args.metric_for_best_model=forget_Q_A_Prob",
            "trainer.args.greater_is_better=false",
            "eval.tofu.generation.max_new_tokens=4",
            "trainer.args.save_total_limit=1",
        ),
    ),
]


def command(run: Run) -> list[str]:
    """The arguments of `expunge`."""
    verb = "unlearn" if run.experiment else "train"
    words = [
        verb,
        f"experiment={f'unlearn/mini/{run.experiment}' if run.experiment else 'finetune/mini/default'}",
    ]
    common = [f"task_name={run.name}", f"paths.output_dir=saves/{run.name}", "trainer.args.logging_steps=1"]
    common += ["trainer.args.report_to=none", "trainer.args.num_train_epochs=2"]
    common += [] if any("do_eval" in word for word in run.overrides) else ["trainer.args.do_eval=false"]
    common += [] if any("max_steps" in word for word in run.overrides) else ["trainer.args.max_steps=6"]
    if run.experiment:
        common.append("model.model_args.pretrained_model_name_or_path=saves/finetune")
    return [*words, *common, *run.overrides]


def tree_of(commit: str, folder: Path) -> Path:
    """The files of a commit, in a folder that is made once."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def train(source: Path, folder: Path, runs: Sequence[Run]) -> None:
    """Run the command lines with the code of a tree; each killed run is a separate process."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(source / "src"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "EXPUNGE_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    several = "import json, sys; from expunge.cli.main import main\n"
    several += (
        "for words in json.load(sys.stdin):\n    code = main(words)\n    print(words[2], code, flush=True)\n"
    )
    lines = json.dumps([command(run) for run in runs if not run.killed])
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            [sys.executable, "-c", several],
            input=lines,
            text=True,
            cwd=folder,
            env=environment,
            stderr=log,
            stdout=log,
        )
        for run in (run for run in runs if run.killed):
            words = [sys.executable, "-m", "expunge.cli.main", *command(run)]
            _until_checkpoint(words, folder, environment, folder / "saves" / run.name / "checkpoint-3")
            subprocess.run(words, cwd=folder, env=environment, stderr=log, stdout=log)


def _until_checkpoint(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], checkpoint: Path
) -> None:
    with subprocess.Popen(
        words, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not checkpoint.is_dir():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


def compared(one: Path, other: Path) -> tuple[str, str]:
    """The result for the weights and for the log of two run folders."""
    return _weights(one, other), _log(one, other)


def _weights(one: Path, other: Path) -> str:
    from safetensors.torch import load_file

    names = sorted(path.name for path in one.glob("*model*.safetensors"))
    if not names or names != sorted(path.name for path in other.glob("*model*.safetensors")):
        return "MISSING"
    apart = 0.0
    for name in names:
        first, second = load_file(one / name), load_file(other / name)
        if first.keys() != second.keys():
            return "OTHER TENSORS"
        for key, value in first.items():
            apart = max(apart, float((value.double() - second[key].double()).abs().max()))
    same = all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    return "equal" if same else f"{apart:.2g}"


def _log(one: Path, other: Path) -> str:
    records = []
    for folder in (one, other):
        path = folder / "log.jsonl"
        if not path.is_file():
            return "MISSING"
        records.append([json.loads(line) for line in path.read_text().splitlines()])
    if len(records[0]) != len(records[1]):
        return f"{len(records[0])} and {len(records[1])} records"
    apart = sorted(
        {
            key
            for first, second in zip(*records, strict=True)
            for key in first.keys() & second.keys()
            if key not in NOT_COMPARED and first[key] != second[key]
        }
    )
    only = sorted(
        {key for first, second in zip(*records, strict=True) for key in first.keys() ^ second.keys()}
    )
    said = "equal" if not apart else f"differs in {', '.join(apart)}"
    return f"{said} (one has {', '.join(only)})" if only else said


def main() -> int:
    """Run both trees and print a table; return 1 if a run's weights differ by more than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_commits", description=__doc__)
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only runs whose name contains NAME"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest allowed difference of a weight (default: 0)"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the runs; finished runs of the other commit are used again"
    )
    args = parser.parse_args()
    wanted = [
        run
        for run in RUNS
        if run.name == "finetune" or not args.only or any(o in run.name for o in args.only)
    ]
    folder = args.keep or Path(tempfile.mkdtemp(prefix="equal-commits-"))
    there, here = folder / args.commit, folder / "here"
    tree_of(args.commit, there / "tree")
    missing = [run for run in wanted if not (there / "saves" / run.name / "log.jsonl").is_file()]
    train(there / "tree", there, missing)
    shutil.rmtree(here, ignore_errors=True)
    for name in ("src", "configs"):
        # A copy of the current state, so that later edits have no effect on the runs.
        shutil.copytree(ROOT / name, here / "tree" / name, symlinks=True)
    train(here / "tree", here, wanted)
    bad = 0
    print(f"{'run':28}{'weights':>14}  log")
    for run in wanted:
        weights, log = compared(there / "saves" / run.name, here / "saves" / run.name)
        bad += weights != "equal" and not (weights[0].isdigit() and float(weights) <= args.tolerance)
        print(f"{run.name:28}{weights:>14}  {log}")
    print(f"{len(wanted)} runs, {bad} differ; {folder}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
